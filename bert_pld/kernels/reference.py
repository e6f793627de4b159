"""The blocks' operations in eager torch: the specification that every other backend is tested against.

Shapes: B sequences, S positions, H hidden, I intermediate, N attention heads, M masked positions, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bert_pld.kernels.dropout import draws_integers
from bert_pld.kernels.dropout import dropout as drop_out
from bert_pld.kernels.linear import linear, needs_widening


def layer_norm(hidden_states: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension: [..., H] → [..., H]."""
    return F.layer_norm(hidden_states, weight.shape, weight, bias, eps)


def linear_gelu(
    hidden_states: Tensor, weight: Tensor, bias: Tensor, activation: Literal["gelu", "gelu_tanh"]
) -> Tensor:
    """gelu(x · Wᵀ + b), with the error function or its tanh approximation: [..., H] → [..., I]."""
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return F.gelu(linear(hidden_states, weight, bias), approximate=approximate)


def linear_dropout_scale_residual(
    inner: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, dropout: float, scale: float | Tensor
) -> Tensor:
    """residual + scale · dropout(x · Wᵀ + b): [..., I] and [..., H] → [..., H].

    `scale` is the gate's 1 / p_l (arXiv:2010.13369, section 3); `dropout` is 0 outside training.
    """
    branch = drop_out(linear(inner, weight, bias), dropout)
    if isinstance(scale, Tensor):
        return residual + branch * scale
    return torch.add(residual, branch, alpha=scale)


def self_attention(qkv: Tensor, num_heads: int, attention_mask: Tensor | None, dropout: float) -> Tensor:
    """Multi-head softmax attention on packed projections.

    Args:
        qkv: [B, S, 3·H], queries, keys and values one after the other.
        num_heads: N.
        attention_mask: bool [B, S], True where there is a token, or None for no padding.
        dropout: of the attention probabilities; 0 outside training.

    Returns:
        [B, S, H].
    """
    if needs_widening(qkv):
        return self_attention(qkv.float(), num_heads, attention_mask, dropout).to(qkv.dtype)
    batch, seq, width = qkv.shape
    heads = qkv.view(batch, seq, 3, num_heads, width // (3 * num_heads))
    query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, N, S, H / N]
    mask = None if attention_mask is None else attention_mask[:, None, None, :]
    if dropout and draws_integers(qkv):
        # With dropout torch's fused attention does not run on a CPU: these are the same steps, with a faster dropout.
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        context = drop_out(scores.softmax(-1), dropout) @ value
    else:
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return context.transpose(1, 2).reshape(batch, seq, width // 3)


def masked_lm_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy in fp32 of [M, V] logits against [M] labels, in nats; 0 for M = 0."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")
