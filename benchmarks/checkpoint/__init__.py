"""Cost of a checkpoint."""
