"""ModernBERT's encoder through fused kernels, as `fused.py` does for BERT: no padding, outputs that join late.

The blocks have no biases; `add_norm` gets zeros for them. The positions of the tokens that a block runs on are gathered
once a block and drive both the rotation and the local window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bert_pld.kernels.add_norm import add_norm
from bert_pld.kernels.dropout import dropout as drop_out
from bert_pld.kernels.geglu import geglu
from bert_pld.kernels.layout import TokenLayout
from bert_pld.kernels.placed_attention import Places, placed_attention
from bert_pld.kernels.reference import Join, RowMap
from bert_pld.kernels.reference_attention import rotary_angles
from bert_pld.kernels.rotary import rotary_heads
from bert_pld.model.block_calls import BlockCall, block_calls
from bert_pld.model.block_graph import Inputs
from bert_pld.model.encoder import Encoder
from bert_pld.model.fused import Chosen, FusedEncoding
from bert_pld.model.fused_embeddings import embed_words_fused, embedding_dropout
from bert_pld.model.graphs import block_runner
from bert_pld.model.modern_block import ModernBlock
from bert_pld.pld.gates import BlockGate


@dataclasses.dataclass(frozen=True)
class PlacedCall:
    """The arguments of one block's forward that have no gradient, passed by keyword as `BlockCall` is."""

    call: BlockCall
    places: Places
    zeros: Tensor
    """[H], in place of biases."""


def install(encoder: Encoder) -> None:
    """Make ModernBERT's encoder run through fused kernels."""
    encoding = FusedEncoding(_embed, _run_blocks)
    encoder.run, encoder.run_chosen, encoder.leaves_padding_out = encoding.encode, encoding.encode_chosen, True
    encoder.embeddings.run = embed_words_fused
    for block in encoder.blocks:
        block.run = run_fused
    assert encoder.final_norm is not None
    encoder.final_norm.run = normalize_fused


def run_fused(
    block: ModernBlock, stream: Tensor, values: Tensor | None = None, *, placed: PlacedCall
) -> tuple[Tensor, Tensor]:
    """Run a block.

    Args:
        block: the module that holds the parameters.
        stream: [T, H] residual stream.
        values: [K, H] pending output of the last kept block, or None.
        placed: the arguments without gradients.

    Returns:
        The stream with everything but this block's last output, and that output; of the chosen rows [R, H] if there
        are any.
    """
    call, zeros, config = placed.call, placed.zeros, block.config
    after_attention, _ = call.joins
    bias = None if values is None else zeros
    if block.attention_norm_weight is None:
        assert values is None, "no block comes before the first one"
        normed = _rows_of(stream, call.rows)
    else:
        normed, stream = add_norm(
            stream, block.attention_norm_weight, zeros, config.layer_norm_eps, values, bias, call.pending, call.rows
        )
    places = placed.places
    heads = rotary_heads(
        block.linear(normed, block.qkv_weight, None),
        config.num_attention_heads,
        places.positions,
        places.cosines,
        places.sines,
    )
    context = placed_attention(*heads, call.layout, block.attention_dropout, places)
    if call.chosen is not None:
        stream, context = stream.index_select(0, call.chosen), context.index_select(0, call.chosen)
    attended = block.linear(context, block.attention_output_weight, None)
    normed, stream = add_norm(
        stream, block.ffn_norm_weight, zeros, config.layer_norm_eps, attended, zeros, after_attention, call.rows
    )
    inner = drop_out(geglu(block.linear(normed, block.ffn_up_weight, None), config.hidden_act), block.hidden_dropout)
    return stream, block.linear(inner, block.ffn_down_weight, None)


def normalize_fused(
    norm: nn.LayerNorm, stream: Tensor, values: Tensor | None, zeros: Tensor, join: Join | None
) -> Tensor:
    """Add the last kept block's pending output to the stream [T, H] and normalise it: [T, H]."""
    bias = None if values is None else zeros
    return add_norm(stream, norm.weight, zeros, norm.eps, values, bias, join)[0]


def _embed(encoder: Encoder, input_ids: Tensor, token_type_ids: Tensor, layout: TokenLayout) -> Tensor:
    """Embed the tokens, [T, H]. There are no segments."""
    return encoder.embeddings(input_ids, layout=layout, dropout=embedding_dropout(encoder))


def _run_blocks(
    encoder: Encoder, stream: Tensor, layout: TokenLayout, gates: Sequence[BlockGate] | None, chosen: Chosen
) -> Tensor:
    config, positions = encoder.config, layout.token_positions.int()
    kinds = [_of_kind(encoder, is_local, layout, positions) for is_local in (False, True)]
    zeros = stream.new_zeros(config.hidden_size)
    values: Tensor | None = None
    pending: Join | None = None

    def call_block(block: ModernBlock, inputs: Inputs, call: BlockCall) -> tuple[Tensor, ...]:
        own, neighbours = _rows_of(positions, call.rows), call.is_on_whole_sequences
        places = dataclasses.replace(kinds[block.is_local], positions=own, are_neighbours=neighbours)
        return encoder.recomputed(block)(*inputs, placed=PlacedCall(call, places, zeros))

    dropout = config.attention_dropout, 0.0
    run, memory = block_runner(encoder, stream, layout, gates, dropout, call_block)
    for block, call, keep in block_calls(encoder, layout, gates, dropout, memory):
        if not keep:
            nothing = PlacedCall(call, dataclasses.replace(kinds[block.is_local], positions=positions[:0]), zeros)
            no_stream, no_values = block(stream[:0], None, placed=nothing)
            stream = stream + no_stream.sum() + no_values.sum()
            continue
        call = dataclasses.replace(call, pending=pending, chosen=chosen.get(block))
        stream, values = run(block, (stream, values), call)
        pending = call.joins[1]
    assert encoder.final_norm is not None
    return encoder.final_norm(stream, values, zeros, pending)


def _of_kind(encoder: Encoder, is_local: bool, layout: TokenLayout, positions: Tensor) -> Places:
    """Return the places of a global or a local block on whole sequences."""
    config = encoder.config
    theta = config.local_rope_theta if is_local else config.global_rope_theta
    assert theta is not None
    longest = layout.padded_length if layout.documents is None else layout.documents.longest
    every = torch.arange(longest, device=positions.device)
    angles = rotary_angles(every, config.hidden_size // config.num_attention_heads, theta)
    reach = config.attention_reach if is_local else None
    if reach is not None and reach >= longest - 1:
        reach = None
    return Places(positions, *angles, reach, are_neighbours=True)


def _rows_of(values: Tensor, rows: RowMap | None) -> Tensor:
    """Return the rows of the stream that a block runs on, in order."""
    return values if rows is None else values.index_select(0, rows.stream_rows)
