"""How each block of a forward is called through fused kernels: its layout, its rows, and how its outputs join."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bert_pld.kernels.dropout import CounterDropout
from bert_pld.kernels.joins import on_device
from bert_pld.kernels.layout import FixedRows, TokenLayout, kept_layouts, token_layouts
from bert_pld.kernels.reference import Join, RowMap
from bert_pld.model.encoder import Encoder
from bert_pld.pld.gates import BlockGate


@dataclasses.dataclass(frozen=True)
class BlockCall:
    """The arguments of one block's forward that have no gradient.

    Passed by keyword: DeepSpeed searches positional arguments for tensors and warns about types it does not know.
    """

    layout: TokenLayout
    """Layout of the sequences that the block runs on."""
    rows: RowMap | None
    """Rows of these sequences in the stream; None: all rows."""
    joins: tuple[Join, Join]
    """How the attention's output and the feed-forward's output join the stream."""
    is_on_whole_sequences: bool = True
    """Whether the block runs on whole sequences or documents, not on some of their tokens."""
    pending: Join | None = None
    """How the pending output of an earlier block joins the stream."""
    chosen: Tensor | None = None
    """int64 [R]: the rows that anything after this block's attention is needed for; None: all."""


@dataclasses.dataclass(frozen=True)
class FixedMemory:
    """Memory from which captured blocks read what changes with each forward."""

    words: Tensor
    """int32 [2 · blocks, 4]: the words of the joins."""
    rows: FixedRows
    """The rows of the stream and of each block."""


def block_calls(
    encoder: Encoder,
    layout: TokenLayout,
    gates: Sequence[BlockGate] | None,
    probabilities: tuple[float, float],
    memory: FixedMemory | None = None,
) -> Iterator[tuple[Any, BlockCall, bool]]:
    """Yield each block to call, its arguments, and whether it is kept; else it is called on no rows.

    `probabilities` are the dropout probabilities of the sub-layers' outputs in training. What the calls read on the
    device is put into `memory`; None allocates it.
    """
    if gates is None:
        gates = [BlockGate(keep=True, scale=1.0, keep_probability=1.0)] * len(encoder.blocks)
    first, second = probabilities if encoder.training else (0.0, 0.0)
    seed = draw_seed() if first or second else 0
    if memory is not None and layout.cumulative_lengths is not None:
        edges = memory.rows.edges[0].copy_(layout.cumulative_lengths)
        layout = dataclasses.replace(layout, cumulative_lengths=edges)
    if any(gate.tokens is not None for gate in gates):
        # Blocks that run on the same tokens have one layout and one row map.
        different = {id(gate.tokens): gate for gate in gates}
        subsets = [
            (None, None) if gate.tokens is None else (gate.tokens.kept, gate.tokens.counts)
            for gate in different.values()
        ]
        shares = [gate.keep_probability for gate in different.values()]
        of_subsets = token_layouts(layout, subsets, shares, None if memory is None else memory.rows)
        by_subset = dict(zip(different, of_subsets, strict=True))
        layouts = [by_subset[id(gate.tokens)] for gate in gates]
    else:
        layouts = kept_layouts(layout, [gate.rows_on_host if gate.keep else None for gate in gates])
    no_rows = TokenLayout(layout.lengths[:0], layout.padded_length, layout.device)
    joins = on_device(
        [
            Join(gate.scale, CounterDropout(probability, seed, 2 * index + output), rows if gate.keep else None)
            for index, (gate, (_, rows)) in enumerate(zip(gates, layouts, strict=True))
            for output, probability in enumerate((first, second))
        ],
        layout.device,
        None if memory is None else memory.words,
    )
    of_blocks = zip(joins[::2], joins[1::2], strict=True)
    for block, gate, (own, rows), both in zip(encoder.blocks, gates, layouts, of_blocks, strict=True):
        if gate.keep:
            yield block, BlockCall(own, rows, both, gate.tokens is None), True
        elif gate.zero_gradient_when_dropped and torch.is_grad_enabled():
            yield block, BlockCall(no_rows, None, both), False


def draw_seed() -> int:
    """Draw a forward's dropout seed from torch's CPU generator, which the training loop seeds at each step."""
    return int(torch.randint(2**62, ()))
