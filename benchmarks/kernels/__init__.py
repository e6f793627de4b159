"""Fused kernels against the bandwidth of a copy and other implementations."""
