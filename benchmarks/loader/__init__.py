"""The data loader against Hugging Face's collators."""
