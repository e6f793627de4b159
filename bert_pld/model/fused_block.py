"""The switchable block through fused kernels, on flattened tokens.

In a pre-norm block a sub-layer's output does not join the residual stream where it is made: it waits (`values`, `bias`
and a `Join`) for the next LayerNorm that reads the stream, which may be the next *kept* block's, and one kernel adds,
drops out, scales and normalises. So the stream is read once and written once a sub-layer, however many blocks between
two kept ones were dropped; under sample granularity the same kernel scatters this block's rows and gathers the next's.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from bert_pld.kernels.add_norm import add_norm
from bert_pld.kernels.attention import self_attention
from bert_pld.kernels.bias_gelu import bias_gelu
from bert_pld.kernels.dropout import CounterDropout
from bert_pld.kernels.layout import TokenLayout
from bert_pld.kernels.linear import linear
from bert_pld.kernels.reference import Join, RowMap
from bert_pld.model.block import SwitchableBlock


@dataclasses.dataclass(frozen=True)
class BlockCall:
    """What a block must know of one forward besides tensors that have gradients.

    Given by keyword: DeepSpeed looks for tensors in positional arguments, and warns of what it can't look into.
    """

    layout: TokenLayout
    """Of the sequences that the block runs on."""
    rows: RowMap | None
    """Their rows in the stream; None: all."""
    scale: float
    """The gate's 1 / p_l."""
    dropout: tuple[CounterDropout, CounterDropout]
    """Of the attention's and of the feed-forward's output."""
    pending: Join | None = None
    """How the output that waits joins the stream."""

    @property
    def joins(self) -> tuple[Join, Join]:
        """How this block's two outputs join the stream."""
        attention, ffn = self.dropout
        return Join(self.scale, attention, self.rows), Join(self.scale, ffn, self.rows)


def run_fused_pre_norm(
    block: SwitchableBlock, stream: Tensor, values: Tensor | None, bias: Tensor | None, call: BlockCall
) -> tuple[Tensor, Tensor, Tensor]:
    """A pre-norm block.

    Args:
        block: the parameters.
        stream: [T, H] residual stream.
        values: [K, H] output of the last kept block that has not joined the stream yet, or None.
        bias: [H] to be added to it, or None.
        call: the rest.

    Returns:
        The stream with all but this block's last output, that output, and the bias to be added to it.
    """
    eps = block.config.layer_norm_eps
    after_attention, _ = call.joins
    normed, stream = add_norm(
        stream, block.attention_norm_weight, block.attention_norm_bias, eps, values, bias, call.pending, call.rows
    )
    attended = _attention(block, normed, call.layout)
    normed, stream = add_norm(
        stream,
        block.ffn_norm_weight,
        block.ffn_norm_bias,
        eps,
        attended,
        block.attention_output_bias,
        after_attention,
        call.rows,
    )
    return stream, _feed_forward(block, normed), _outliving(block.ffn_down_bias)


def run_fused_post_norm(block: SwitchableBlock, hidden_states: Tensor, call: BlockCall) -> Tensor:
    """A post-norm block on its own rows: [K, H] → [K, H]."""
    eps = block.config.layer_norm_eps
    joins = [dataclasses.replace(join, rows=None) for join in call.joins]
    attended = _attention(block, hidden_states, call.layout)
    hidden_states, _ = add_norm(
        hidden_states,
        block.attention_norm_weight,
        block.attention_norm_bias,
        eps,
        attended,
        block.attention_output_bias,
        joins[0],
    )
    inner = _feed_forward(block, hidden_states)
    hidden_states, _ = add_norm(
        hidden_states, block.ffn_norm_weight, block.ffn_norm_bias, eps, inner, block.ffn_down_bias, joins[1]
    )
    return hidden_states


def touch(block: SwitchableBlock, stream: Tensor, call: BlockCall) -> Tensor:
    """Run a dropped block on no rows: a zero whose backward gives all its parameters zero gradients."""
    nothing = stream[:0]
    if block.config.normalization == "post":
        return block(nothing, call=call).sum()
    stream, values, bias = block(nothing, None, None, call=call)
    return stream.sum() + values.sum() + bias[:0].sum()


def _attention(block: SwitchableBlock, normed: Tensor, layout: TokenLayout) -> Tensor:
    """Without the output's bias: [K, H] → [K, H]."""
    qkv = linear(normed, block.qkv_weight, block.qkv_bias)
    context = self_attention(qkv, block.config.num_attention_heads, layout, block.attention_dropout)
    return linear(context, block.attention_output_weight, None)


def _feed_forward(block: SwitchableBlock, normed: Tensor) -> Tensor:
    """Without the output's bias: [K, H] → [K, H]."""
    inner = bias_gelu(linear(normed, block.ffn_up_weight, None), block.ffn_up_bias, block.config.hidden_act)
    return linear(inner, block.ffn_down_weight, None)


def _outliving(bias: Tensor) -> Tensor:
    """A parameter for use after its module has returned, when ZeRO-3 has taken back what it gathered."""
    return bias.clone() if hasattr(bias, "ds_id") else bias.view_as(bias)


def draw_seed() -> int:
    """A forward's dropout seed, from torch's generator of the host, which a training step seeds."""
    return int(torch.randint(2**62, ()))
