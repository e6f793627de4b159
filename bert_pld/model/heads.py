"""The two heads of pretraining: masked language model, and next sentence."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_pld.config import ModelConfig
from bert_pld.kernels.reference import Linear, gelu, linear, linear_cross_entropy_sum


class MaskedLanguageModelHead(nn.Module):
    """Transform, LayerNorm, and a decoder that has its own bias and is tied to the word embeddings.

    `bias` is for the transform and the LayerNorm.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, bias: bool = True) -> None:
        super().__init__()
        self.config = config
        self.cross_entropy_sum: Callable[..., tuple[Tensor, Tensor]] = linear_cross_entropy_sum
        """Decoder and loss against labels; a backend replaces it."""
        width = config.embedding_size or config.hidden_size
        self.transform = Linear(config.hidden_size, width, bias=bias)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps, bias=bias)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(
        self, hidden_states: Tensor, word_embeddings: Tensor, labels: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Compute logits, or the loss against labels.

        Args:
            hidden_states: [M, H], of the masked positions only.
            word_embeddings: [V, H], or [V, E] with an `embedding_size`.
            labels: int64 [M], or None.

        Returns:
            Logits [M, V]; with labels the summed loss (fp32, nats) and the number of labels with the highest logit.
        """
        inner = self.norm(gelu(self.transform(hidden_states), self.config.hidden_act))
        if labels is None:
            return linear(inner, word_embeddings, self.bias)
        return self.cross_entropy_sum(inner, word_embeddings, self.bias, labels)


class NextSentenceHead(nn.Module):
    """Pooler over [CLS] and a classifier with two classes: 0 next sentence, 1 random sentence."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pooler = Linear(config.hidden_size, config.hidden_size)
        self.classifier = Linear(config.hidden_size, 2)

    def forward(self, first_tokens: Tensor) -> Tensor:
        """Return logits [B, 2] from the hidden states [B, H] of the first tokens."""
        return self.classifier(torch.tanh(self.pooler(first_tokens)))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy in fp32 over labels that are not -100; 0 if there are none."""
        loss_sum = F.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=-100)
        return loss_sum / (labels != -100).sum().clamp(min=1)
