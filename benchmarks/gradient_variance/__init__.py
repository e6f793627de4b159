"""Variance of the gradient under gate draws."""
