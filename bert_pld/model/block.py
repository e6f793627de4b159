"""The switchable Transformer block: its parameters, and its sub-layers in eager torch.

`pre` normalization is the paper's switchable block with identity mapping: the residual stream is never normalised, and
one LayerNorm follows the last block (Hugging Face: MegatronBert). `post` is the original BERT. The parameters have the
same layout in every backend; `bert_pld.model.fused` runs them through fused kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bert_pld.config import ModelConfig
from bert_pld.kernels import reference as ops
from bert_pld.kernels.reference_attention import self_attention


class GatedBlock(nn.Module):
    """A Transformer block that a gate can drop or scale: its parameters, and the function that runs them.

    It has no sub-modules, so that it is one unit for ZeRO-3's gathering, torch.compile and fused kernels.
    """

    stacked_matrices: ClassVar[Mapping[str, int]] = {"qkv_weight": 3}
    """Parameters that hold several equal matrices in their rows, and their number."""

    def __init__(self, config: ModelConfig, run: Callable[..., Any]) -> None:
        super().__init__()
        self.config = config
        self.run = run
        """Called with this block and the arguments of `forward`; a backend replaces it."""
        self.linear: Callable[[Tensor, Tensor, Tensor | None], Tensor] = ops.linear
        """The block's matrix products; `model.fp8` replaces it."""

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """Call `run`: the eager function, or the one that a backend put in its place."""
        return self.run(self, *inputs, **keywords)

    @property
    def hidden_dropout(self) -> float:
        """Dropout probability of hidden states; 0 outside training."""
        return self.config.hidden_dropout if self.training else 0.0

    @property
    def attention_dropout(self) -> float:
        """Dropout probability of the attention weights; 0 outside training."""
        return self.config.attention_dropout if self.training else 0.0


class SwitchableBlock(GatedBlock):
    """BERT's block under a gate (arXiv:2010.13369, section 3).

    pre:   x' = x + s · Attention(LN(x));   x'' = x' + s · FFN(LN(x'))
    post:  x' = LN(x + s · Attention(x));   x'' = LN(x' + s · FFN(x'))

    with s = 1 / p_l in training and 1 in evaluation.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, run_eager)
        hidden, intermediate = config.hidden_size, config.intermediate_size
        self.attention_norm_weight = nn.Parameter(torch.empty(hidden))
        self.attention_norm_bias = nn.Parameter(torch.empty(hidden))
        self.qkv_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.qkv_bias = nn.Parameter(torch.empty(3 * hidden))
        self.attention_output_weight = nn.Parameter(torch.empty(hidden, hidden))
        self.attention_output_bias = nn.Parameter(torch.empty(hidden))
        self.ffn_norm_weight = nn.Parameter(torch.empty(hidden))
        self.ffn_norm_bias = nn.Parameter(torch.empty(hidden))
        self.ffn_up_weight = nn.Parameter(torch.empty(intermediate, hidden))
        self.ffn_up_bias = nn.Parameter(torch.empty(intermediate))
        self.ffn_down_weight = nn.Parameter(torch.empty(hidden, intermediate))
        self.ffn_down_bias = nn.Parameter(torch.empty(hidden))


def run_eager(
    block: SwitchableBlock,
    hidden_states: Tensor,
    attention_mask: Tensor | None,
    scale: float | Tensor,
    chosen: Tensor | None = None,
) -> Tensor:
    """Run the block in eager torch: hidden states [B, S, H] and a bool mask [B, S], or None → [B, S, H].

    With `chosen` (int64 [R], rows of the flattened result) everything after attention runs on these rows: → [R, H].
    """
    if block.config.normalization == "pre":
        normed = _attention_norm(block, hidden_states)
        hidden_states = _attend(block, normed, hidden_states, attention_mask, scale, chosen)
        return _feed_forward(block, _ffn_norm(block, hidden_states), hidden_states, scale)
    hidden_states = _attention_norm(block, _attend(block, hidden_states, hidden_states, attention_mask, scale, chosen))
    return _ffn_norm(block, _feed_forward(block, hidden_states, hidden_states, scale))


def _attend(
    block: SwitchableBlock,
    normed: Tensor,
    residual: Tensor,
    attention_mask: Tensor | None,
    scale: float | Tensor,
    chosen: Tensor | None,
) -> Tensor:
    qkv = block.linear(normed, block.qkv_weight, block.qkv_bias)
    context = self_attention(qkv, block.config.num_attention_heads, attention_mask, block.attention_dropout)
    if chosen is not None:
        context, residual = rows_of(context, chosen), rows_of(residual, chosen)
    return ops.linear_dropout_scale_residual(
        context,
        block.attention_output_weight,
        block.attention_output_bias,
        residual,
        block.hidden_dropout,
        scale,
        block.linear,
    )


def rows_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the chosen rows: [B, S, H] and int64 [R] → [R, H]."""
    return values.flatten(0, 1).index_select(0, chosen)


def _feed_forward(block: SwitchableBlock, normed: Tensor, residual: Tensor, scale: float | Tensor) -> Tensor:
    inner = ops.gelu(block.linear(normed, block.ffn_up_weight, block.ffn_up_bias), block.config.hidden_act)
    return ops.linear_dropout_scale_residual(
        inner, block.ffn_down_weight, block.ffn_down_bias, residual, block.hidden_dropout, scale, block.linear
    )


def _attention_norm(block: SwitchableBlock, hidden_states: Tensor) -> Tensor:
    eps = block.config.layer_norm_eps
    return ops.layer_norm(hidden_states, block.attention_norm_weight, block.attention_norm_bias, eps)


def _ffn_norm(block: SwitchableBlock, hidden_states: Tensor) -> Tensor:
    return ops.layer_norm(hidden_states, block.ffn_norm_weight, block.ffn_norm_bias, block.config.layer_norm_eps)
