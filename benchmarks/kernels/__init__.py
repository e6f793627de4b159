"""Fused kernels against copy bandwidth and peers."""
