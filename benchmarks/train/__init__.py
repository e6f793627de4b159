"""Training throughput beside Hugging Face's classes and DeepSpeed's layer."""
