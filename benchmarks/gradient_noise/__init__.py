"""The gradient noise scale of checkpoints."""
