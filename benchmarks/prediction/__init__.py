"""A training step's time and MFU on GPUs, predicted."""
