"""ModernBERT's block under a gate: its parameters, and its sub-layers in eager torch (arXiv:2412.13663)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from bert_pld.config import ModelConfig
from bert_pld.kernels import reference as ops
from bert_pld.kernels.documents import WithinDocuments
from bert_pld.kernels.dropout import dropout as drop_out
from bert_pld.kernels.reference_attention import self_attention
from bert_pld.model.block import GatedBlock, rows_of


class ModernBlock(GatedBlock):
    """A pre-norm block without biases, with rotary positions and a gated feed-forward.

    x' = x + s · Attention(LN(x));   x'' = x' + s · FFN(LN(x'));   FFN(y) = (gelu(y·Aᵀ) ∘ y·Bᵀ)·Cᵀ

    with s = 1 / p_l in training and 1 in evaluation. The first block has no LN before its attention, because the
    LayerNorm of the embeddings stands directly before it. That LayerNorm is outside the gate: it also runs where the
    first block is dropped, and the second block then reads its output through its own LN, as it would read any stream.
    So any block can be dropped. `keep_first_block` advises for this block what it advises for BERT's.
    """

    stacked_matrices: ClassVar[Mapping[str, int]] = {"qkv_weight": 3, "ffn_up_weight": 2}

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__(config, run_eager)
        hidden, intermediate = config.hidden_size, config.intermediate_size
        self.is_local = config.is_local(index)
        """Whether attention is within `local_attention` only."""
        self.attention_norm_weight = nn.Parameter(torch.empty(hidden)) if index else None
        self.qkv_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.attention_output_weight = nn.Parameter(torch.empty(hidden, hidden))
        self.ffn_norm_weight = nn.Parameter(torch.empty(hidden))
        self.ffn_up_weight = nn.Parameter(torch.empty(2 * intermediate, hidden))
        self.ffn_down_weight = nn.Parameter(torch.empty(hidden, intermediate))


def run_eager(
    block: ModernBlock,
    hidden_states: Tensor,
    cosines: Tensor,
    sines: Tensor,
    attention_mask: Tensor | WithinDocuments | None,
    scale: float | Tensor,
    chosen: Tensor | None = None,
) -> Tensor:
    """Run the block in eager torch: [B, S, H] → [B, S, H], or with `chosen` [R] the rows [R, H] as in BERT's block.

    `cosines`, `sines` (fp32 [B or 1, S, D / 2]) and `attention_mask` are those of `reference_attention.self_attention`.
    """
    config, eps = block.config, block.config.layer_norm_eps
    normed = hidden_states
    if block.attention_norm_weight is not None:
        normed = ops.layer_norm(hidden_states, block.attention_norm_weight, None, eps)
    qkv = block.linear(normed, block.qkv_weight, None)
    context = self_attention(qkv, config.num_attention_heads, attention_mask, block.attention_dropout, (cosines, sines))
    if chosen is not None:
        context, hidden_states = rows_of(context, chosen), rows_of(hidden_states, chosen)
    hidden_states = ops.linear_dropout_scale_residual(
        context, block.attention_output_weight, None, hidden_states, block.attention_dropout, scale, block.linear
    )
    normed = ops.layer_norm(hidden_states, block.ffn_norm_weight, None, eps)
    inner = ops.geglu(block.linear(normed, block.ffn_up_weight, None), config.hidden_act)
    inner = drop_out(inner, block.hidden_dropout)
    return ops.linear_dropout_scale_residual(
        inner, block.ffn_down_weight, None, hidden_states, 0.0, scale, block.linear
    )
