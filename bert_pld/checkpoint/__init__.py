"""Checkpoints: their files on disk, writing them beside training, and resuming from them."""
