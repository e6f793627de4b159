"""Loss curves of two kernel backends."""
