"""Time to a held-out loss beside Hugging Face's classes."""
