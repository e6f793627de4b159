"""Operators of a training step, counted."""
