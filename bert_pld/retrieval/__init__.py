"""Retrieval: a folder in BEIR's format, contrastive fine-tuning through sentence-transformers, nDCG@10."""
