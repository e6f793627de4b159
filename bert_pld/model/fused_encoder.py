"""The encoder through fused kernels: tokens without padding, one residual stream, outputs that wait for a LayerNorm."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bert_pld.kernels.dropout import CounterDropout
from bert_pld.kernels.layout import TokenLayout, kept_layouts, packed_layout, padded_layout
from bert_pld.kernels.reference import Join
from bert_pld.model.block import SwitchableBlock
from bert_pld.model.fused_block import BlockCall, draw_seed, run_fused_post_norm, run_fused_pre_norm, touch
from bert_pld.pld.gates import BlockGate

if TYPE_CHECKING:
    from bert_pld.model.bert import Encoder


def fuse(encoder: Encoder) -> None:
    """Run this encoder's blocks, and its last LayerNorm, through fused kernels from now on."""
    pre = encoder.config.normalization == "pre"
    encoder.fused = True
    for block in encoder.blocks:
        block.run = run_fused_pre_norm if pre else run_fused_post_norm
    if encoder.final_norm is not None:
        encoder.final_norm.fused = True


def encode_fused(
    encoder: Encoder,
    input_ids: Tensor,
    token_type_ids: Tensor,
    attention_mask: Tensor | None,
    gates: Sequence[BlockGate] | None,
    sequence_lengths: NDArray[np.int64] | None,
) -> tuple[Tensor, TokenLayout]:
    """`Encoder.encode` without padding: [T, H], T tokens."""
    device = input_ids.device
    # Triton launches on the current device.
    assert device.type != "cuda" or device.index == torch.cuda.current_device(), f"call torch.cuda.set_device({device})"
    if attention_mask is None:
        layout = padded_layout(input_ids)
        stream = encoder.embeddings(input_ids, token_type_ids).flatten(0, 1)
    else:
        layout = packed_layout(attention_mask, sequence_lengths)
        assert layout.positions is not None
        positions = layout.positions % layout.padded_length
        stream = encoder.embeddings(layout.pack(input_ids), layout.pack(token_type_ids), positions)
    if encoder.final_norm is None:
        return _run_post_norm(encoder, stream, layout, gates), layout

    values: Tensor | None = None
    bias: Tensor | None = None
    pending: Join | None = None
    for block, call, keep in _calls(encoder, layout, gates):
        if not keep:
            # Added where it is cheapest: to H numbers if an output waits.
            if bias is None:
                stream = stream + touch(block, stream, call)
            else:
                bias = bias + touch(block, stream, call)
            continue
        call = dataclasses.replace(call, pending=pending)
        stream, values, bias = encoder.recomputed(block)(stream, values, bias, call=call)
        pending = call.joins[1]
    return encoder.final_norm(stream, values, bias, pending), layout


def _run_post_norm(
    encoder: Encoder, hidden_states: Tensor, layout: TokenLayout, gates: Sequence[BlockGate] | None
) -> Tensor:
    for block, call, keep in _calls(encoder, layout, gates):
        if not keep:
            hidden_states = hidden_states + touch(block, hidden_states, call)
        elif call.rows is None:
            hidden_states = encoder.recomputed(block)(hidden_states, call=call)
        else:
            rows = torch.nonzero_static(call.rows.compact_row >= 0, size=call.rows.count).squeeze(1)
            updated = encoder.recomputed(block)(hidden_states.index_select(0, rows), call=call)
            hidden_states = hidden_states.index_copy(0, rows, updated)
    return hidden_states


def _calls(
    encoder: Encoder, layout: TokenLayout, gates: Sequence[BlockGate] | None
) -> Iterator[tuple[SwitchableBlock, BlockCall, bool]]:
    """Each block that runs, with its call; and (False) each that must be touched instead."""
    gates = (
        gates if gates is not None else [BlockGate(keep=True, scale=1.0, keep_probability=1.0)] * len(encoder.blocks)
    )
    dropout = encoder.config.hidden_dropout if encoder.training else 0.0
    seed = draw_seed() if dropout else 0
    layouts = kept_layouts(layout, [gate.rows_on_host if gate.keep else None for gate in gates])
    nothing = TokenLayout(layout.lengths[:0], layout.padded_length, layout.device)
    for index, (block, gate, (own, rows)) in enumerate(zip(encoder.blocks, gates, layouts, strict=True)):
        assert isinstance(block, SwitchableBlock)
        dropouts = CounterDropout(dropout, seed, 2 * index), CounterDropout(dropout, seed, 2 * index + 1)
        if gate.keep:
            yield block, BlockCall(own, rows, gate.scale, dropouts), True
        elif gate.touch_when_dropped and torch.is_grad_enabled():
            yield block, BlockCall(nothing, None, gate.scale, dropouts), False
