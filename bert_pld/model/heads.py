"""The pretraining heads: masked language model (decoder tied to the word embeddings) and next sentence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_pld.config import ModelConfig
from bert_pld.kernels.linear import Linear, linear


class MaskedLanguageModelHead(nn.Module):
    """Transform, LayerNorm, and the tied decoder with a bias of its own."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.transform = Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden_states: Tensor, word_embeddings: Tensor) -> Tensor:
        """[M, H] hidden states and [V, H] embeddings → [M, V] logits."""
        approximate = "tanh" if self.config.hidden_act == "gelu_tanh" else "none"
        inner = F.gelu(self.transform(hidden_states), approximate=approximate)
        return linear(self.norm(inner), word_embeddings, self.bias)


class NextSentenceHead(nn.Module):
    """Pooler over [CLS] and a two-way classifier: 0 next, 1 random."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pooler = Linear(config.hidden_size, config.hidden_size)
        self.classifier = Linear(config.hidden_size, 2)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, S, H] → [B, 2] logits."""
        return self.classifier(torch.tanh(self.pooler(hidden_states[:, 0])))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in fp32 over labels that are not -100; 0 if there are none."""
        loss_sum = F.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=-100)
        return loss_sum / (labels != -100).sum().clamp(min=1)
