"""The logits of every token, which training computes at the masked positions alone."""

from __future__ import annotations

from torch import Tensor

from bert_pld.model import BertForPreTraining


def token_logits(model: BertForPreTraining, hidden_states: Tensor) -> Tensor:
    """Return the logits of the masked-LM head: [..., H] → [..., V]."""
    return model.mlm_head(hidden_states, model.encoder.embeddings.word.weight)
