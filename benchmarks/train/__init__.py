"""Training throughput against Hugging Face's classes and DeepSpeed's layer."""
