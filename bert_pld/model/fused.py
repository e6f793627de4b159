"""The encoder through fused kernels: tokens without padding, one residual stream, outputs that join it late.

In a pre-norm block a sub-layer's output is not added to the residual stream where it is computed. It stays pending
(`values`, `bias` and a `Join`) until the next LayerNorm reads the stream, which may be the next *kept* block's; there
one kernel applies bias, dropout and scale, adds, and normalises. So each sub-layer reads and writes the stream once,
however many blocks between two kept ones were dropped. Under sample and token granularity the same kernel scatters the
rows of the block that ran and gathers those of the block that runs next.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bert_pld.kernels.add_norm import add_norm
from bert_pld.kernels.attention import self_attention
from bert_pld.kernels.bias_gelu import bias_gelu
from bert_pld.kernels.filling import Filling
from bert_pld.kernels.layout import TokenLayout, packed_layout, padded_layout
from bert_pld.kernels.reference import Join
from bert_pld.model.block import SwitchableBlock
from bert_pld.model.block_calls import BlockCall, block_calls
from bert_pld.model.block_graph import Inputs
from bert_pld.model.encoder import Encoder
from bert_pld.model.fused_embeddings import embed_fused, embedding_dropout
from bert_pld.model.graphs import block_runner
from bert_pld.pld.gates import BlockGate, last_whole_block


def install(encoder: Encoder) -> None:
    """Make BERT's encoder run through fused kernels."""
    run_blocks = _run_post_norm_blocks if encoder.final_norm is None else _run_pre_norm_blocks
    encoding = FusedEncoding(_embed, run_blocks, fills=True)
    encoder.run, encoder.run_chosen, encoder.leaves_padding_out = encoding.encode, encoding.encode_chosen, True
    encoder.embeddings.run = embed_fused
    for block in encoder.blocks:
        block.run = run_fused_post_norm if encoder.final_norm is None else run_fused_pre_norm
    if encoder.final_norm is not None:
        encoder.final_norm.run = normalize_fused


def run_fused_pre_norm(
    block: SwitchableBlock, stream: Tensor, values: Tensor | None = None, bias: Tensor | None = None, *, call: BlockCall
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a pre-norm block.

    Args:
        block: the module that holds the parameters.
        stream: [T, H] residual stream.
        values: [K, H] pending output of the last kept block, or None.
        bias: [H] to be added to `values`, or None.
        call: the arguments without gradients.

    Returns:
        The stream with everything but this block's last output, that output, and the bias to be added to it; of the
        chosen rows [R, H] if there are any.
    """
    eps = block.config.layer_norm_eps
    after_attention, _ = call.joins
    normed, stream = add_norm(
        stream, block.attention_norm_weight, block.attention_norm_bias, eps, values, bias, call.pending, call.rows
    )
    if call.chosen is not None:
        stream = stream.index_select(0, call.chosen)
    attended = _attention(block, normed, call.layout, call.chosen)
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
    return stream, _feed_forward(block, normed), _usable_after_forward(block.ffn_down_bias)


def run_fused_post_norm(block: SwitchableBlock, hidden_states: Tensor, call: BlockCall) -> Tensor:
    """Run a post-norm block on the rows that it keeps: [K, H] → [K, H]; or [R, H] of the chosen rows."""
    eps = block.config.layer_norm_eps
    joins = [dataclasses.replace(join, rows=None) for join in call.joins]
    attended = _attention(block, hidden_states, call.layout, call.chosen)
    if call.chosen is not None:
        hidden_states = hidden_states.index_select(0, call.chosen)
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


def run_on_no_rows(block: SwitchableBlock, stream: Tensor, call: BlockCall) -> Tensor:
    """Run a dropped block on an empty batch.

    Returns:
        A zero that depends on all the block's parameters: backward gives them zero gradients of the right shape.
    """
    no_rows = stream[:0]
    if block.config.normalization == "post":
        return block(no_rows, call=call).sum()
    stream, values, bias = block(no_rows, None, None, call=call)
    return stream.sum() + values.sum() + bias[:0].sum()


def _attention(block: SwitchableBlock, normed: Tensor, layout: TokenLayout, chosen: Tensor | None = None) -> Tensor:
    """Apply attention and, on the chosen rows, its output projection: [K, H] → [K, H], or [R, H].

    `add_norm` adds the projection's bias.
    """
    # The bias's gradient is summed where that of queries, keys and values is written, not by the product's backward.
    qkv = block.linear(normed, block.qkv_weight, block.qkv_bias.detach())
    context = self_attention(qkv, block.config.num_attention_heads, layout, block.attention_dropout, block.qkv_bias)
    if chosen is not None:
        context = context.index_select(0, chosen)
    return block.linear(context, block.attention_output_weight, None)


def _feed_forward(block: SwitchableBlock, normed: Tensor) -> Tensor:
    """Apply the feed-forward without the output's bias, which `add_norm` adds: [K, H] → [K, H]."""
    inner = bias_gelu(block.linear(normed, block.ffn_up_weight, None), block.ffn_up_bias, block.config.hidden_act)
    return block.linear(inner, block.ffn_down_weight, None)


def _usable_after_forward(bias: Tensor) -> Tensor:
    """Return a parameter's values for use after its module's forward, when ZeRO-3 has released the parameter."""
    return bias.clone() if hasattr(bias, "ds_id") else bias.view_as(bias)


def normalize_fused(
    norm: nn.LayerNorm,
    stream: Tensor,
    values: Tensor | None = None,
    bias: Tensor | None = None,
    join: Join | None = None,
) -> Tensor:
    """Add the last kept block's pending output to the stream [T, H] and normalise it: [T, H]."""
    return add_norm(stream, norm.weight, norm.bias, norm.eps, values, bias, join)[0]


Chosen = Mapping[nn.Module, Tensor]
"""By block, int64 [R]: the rows that anything after its attention is needed for; other blocks need all rows."""


@dataclasses.dataclass(frozen=True)
class FusedEncoding:
    """`Encoder.encode` and `Encoder.encode_chosen` without padding, from an architecture's two steps."""

    embed: Callable[[Encoder, Tensor, Tensor, TokenLayout], Tensor]
    """Embed the tokens: encoder, ids and segments [B, S], layout → [T, H]."""
    run_blocks: Callable[[Encoder, Tensor, TokenLayout, Sequence[BlockGate] | None, Chosen], Tensor]
    """Run the blocks and the final LayerNorm: [T, H] → [T, H], or of the rows chosen in the last kept block [R, H]."""
    fills: bool = False
    """Whether blocks read the tokens' places from the layout alone, so that graphs can run them with fillers."""

    def encode(
        self,
        encoder: Encoder,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor | None,
        gates: Sequence[BlockGate] | None,
        *lengths: NDArray[np.int64] | None,
    ) -> tuple[Tensor, TokenLayout]:
        """`Encoder.encode`: [T, H] for T tokens."""
        layout = _layout(input_ids, attention_mask, lengths)
        stream = self.embed(encoder, input_ids, token_type_ids, layout)
        return self.run_blocks(encoder, stream, layout, gates, {}), layout

    def encode_chosen(
        self,
        encoder: Encoder,
        positions: Tensor,
        with_first: bool,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor | None,
        gates: Sequence[BlockGate] | None,
        *lengths: NDArray[np.int64] | None,
    ) -> Tensor:
        """`Encoder.encode_chosen`."""
        filling = self._filling(encoder, gates, attention_mask, lengths)
        layout = _layout(input_ids, attention_mask, lengths, filling)
        stream = self.embed(encoder, input_ids, token_type_ids, layout)
        rows, last = layout.chosen_rows(positions, with_first), last_whole_block(gates, len(encoder.blocks))
        if last is None:
            return self.run_blocks(encoder, stream, layout, gates, {}).index_select(0, rows)
        return self.run_blocks(encoder, stream, layout, gates, {encoder.blocks[last]: rows})

    def _filling(
        self,
        encoder: Encoder,
        gates: Sequence[BlockGate] | None,
        attention_mask: Tensor | None,
        lengths: tuple[NDArray[np.int64] | None, ...],
    ) -> Filling | None:
        """Return the fillers with which graphs can run this forward; None: it has none."""
        sequence_lengths, document_lengths = lengths
        if encoder.graphs is None or not self.fills or document_lengths is not None:
            return None
        if attention_mask is None or sequence_lengths is None:
            return None
        return encoder.graphs.filling(encoder, gates, sequence_lengths, attention_mask.shape[1])


def _layout(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    lengths: tuple[NDArray[np.int64] | None, ...],
    filling: Filling | None = None,
) -> TokenLayout:
    """Return the layout of ids [B, S]; `lengths` are those of the sequences and of the documents in them."""
    sequence_lengths, document_lengths = lengths
    device = input_ids.device
    # Triton launches kernels on the current device, whatever device the tensors are on.
    assert device.type != "cuda" or device.index == torch.cuda.current_device(), f"call torch.cuda.set_device({device})"
    if attention_mask is None:
        return padded_layout(input_ids, document_lengths)
    return packed_layout(attention_mask, sequence_lengths, document_lengths, filling)


def _embed(encoder: Encoder, input_ids: Tensor, token_type_ids: Tensor, layout: TokenLayout) -> Tensor:
    # Blocks, embeddings and LayerNorm are called as modules, because ZeRO-3 gathers parameters in their forward hooks.
    return encoder.embeddings(input_ids, token_type_ids, layout=layout, dropout=embedding_dropout(encoder))


def _run_pre_norm_blocks(
    encoder: Encoder, stream: Tensor, layout: TokenLayout, gates: Sequence[BlockGate] | None, chosen: Chosen
) -> Tensor:
    values: Tensor | None = None
    bias: Tensor | None = None
    pending: Join | None = None
    dropout = (encoder.config.hidden_dropout,) * 2
    run, memory = block_runner(encoder, stream, layout, gates, dropout, functools.partial(_call_pre_norm, encoder))
    for block, call, keep in block_calls(encoder, layout, gates, dropout, memory):
        if not keep:
            # The zero is added where that is cheapest: to H numbers if an output is pending.
            if bias is None:
                stream = stream + run_on_no_rows(block, stream, call)
            else:
                bias = bias + run_on_no_rows(block, stream, call)
            continue
        call = dataclasses.replace(call, pending=pending, chosen=chosen.get(block))
        stream, values, bias = run(block, (stream, values, bias), call)
        pending = call.joins[1]
    assert encoder.final_norm is not None
    return encoder.final_norm(stream, values, bias, pending)


def _call_pre_norm(encoder: Encoder, block: SwitchableBlock, inputs: Inputs, call: BlockCall) -> tuple[Tensor, ...]:
    return encoder.recomputed(block)(*inputs, call=call)


def _call_post_norm(encoder: Encoder, block: SwitchableBlock, inputs: Inputs, call: BlockCall) -> tuple[Tensor, ...]:
    return (encoder.recomputed(block)(*inputs, call=call),)


def _run_post_norm_blocks(
    encoder: Encoder, hidden_states: Tensor, layout: TokenLayout, gates: Sequence[BlockGate] | None, chosen: Chosen
) -> Tensor:
    dropout = (encoder.config.hidden_dropout,) * 2
    call_block = functools.partial(_call_post_norm, encoder)
    run, memory = block_runner(encoder, hidden_states, layout, gates, dropout, call_block)
    for block, call, keep in block_calls(encoder, layout, gates, dropout, memory):
        if not keep:
            hidden_states = hidden_states + run_on_no_rows(block, hidden_states, call)
        elif call.rows is None:
            call = dataclasses.replace(call, chosen=chosen.get(block))
            (hidden_states,) = run(block, (hidden_states,), call)
        else:
            rows = call.rows.stream_rows
            (updated,) = run(block, (hidden_states.index_select(0, rows),), call)
            hidden_states = hidden_states.index_copy(0, rows, updated)
    return hidden_states
