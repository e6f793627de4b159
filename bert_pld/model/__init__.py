"""BERT with switchable blocks: embeddings → gated blocks → heads, and its mapping to Hugging Face's classes."""

from bert_pld.model.bert import BertForPreTraining
from bert_pld.model.flops import ModelFlops

__all__ = ["BertForPreTraining", "ModelFlops"]
