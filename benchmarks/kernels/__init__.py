"""Fused kernels beside copy bandwidth and peers."""
