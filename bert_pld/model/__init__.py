"""BERT with switchable blocks: embeddings → gated blocks → heads, and its mapping to Hugging Face's classes."""

from bert_pld.model.backends import use_backend
from bert_pld.model.bert import BertForPreTraining

__all__ = ["BertForPreTraining", "use_backend"]
