"""The data loader beside Hugging Face's collators."""
