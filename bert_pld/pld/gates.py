"""Which blocks run, on which rows, with which scale: gates as a pure function of (seed, step, micro-step, block, row).

No global generator is read or advanced, so all ranks agree without a message, a resumed run draws the same gates, and
activation checkpointing, which is handed the same `BlockGate` again, recomputes the same blocks. A block is sampled
and scaled with one and the same p_l, so that E[gate / p_l] = 1 (the published code scaled with the next block's); and
for any set of different blocks the expectation of the product of a row's scaled gates is 1, at both granularities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from bert_pld.pld.schedule import Schedule
from bert_pld.rng import Stream, random_words, to_unit_interval


@dataclasses.dataclass(frozen=True)
class BlockGate:
    """One block's gate for one micro-batch."""

    keep: bool
    """Whether the block runs at all."""
    scale: float
    """What its sub-layers' outputs are multiplied with: 1 / keep_probability; at sample granularity rows / k for a
    block that runs on k of them."""
    keep_probability: float
    rows: torch.Tensor | None = None
    """int64 [k], ascending: the rows the block runs on. None: all."""
    zero_gradient_when_dropped: bool = False
    """Run a dropped block on an empty batch (see `run_gated`)."""
    host_rows: NDArray[np.int64] | None = None
    """`rows` once more, on the host."""

    @property
    def rows_on_host(self) -> NDArray[np.int64] | None:
        """`rows` as an array; a gate that was made without it waits for the device."""
        if self.host_rows is not None or self.rows is None:
            return self.host_rows
        return self.rows.cpu().numpy()


@dataclasses.dataclass(frozen=True)
class Gates(Sequence[BlockGate]):
    """The gates of all blocks for one micro-batch, in depth order."""

    blocks: tuple[BlockGate, ...]
    theta: float
    kept_blocks: float
    """Blocks that run; at sample granularity rows that run over rows, so a fraction."""

    def __getitem__(self, index: Any) -> Any:
        return self.blocks[index]

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[BlockGate]:
        return iter(self.blocks)


def draw_gates(
    schedule: Schedule,
    *,
    granularity: Literal["batch", "sample"],
    seed: int,
    step: int,
    rows: int,
    micro_step: int = 0,
    first_row: int = 0,
    device: torch.device | str = "cpu",
    zero_gradient_when_dropped: bool = False,
) -> Gates:
    """Draw the gates of one micro-batch.

    Args:
        schedule: gives p_l at this step.
        granularity: `batch`: each block is kept for all rows or for none, P[keep] = p_l, independently. `sample`:
            block l runs on k_l of the rows with the scale rows / k_l, k_l the systematic rounding of rows · p_l, so
            that E[k_l] = rows · p_l and Σ k_l varies by at most one between micro-batches. A block with
            rows · p_l < 1, which may run on none, is drawn independently of the others and scaled with 1 / p_l; its
            row comes on top of that constant sum.
        seed: of the gates, in [0, 2^32).
        step: optimizer step, from 0.
        micro_step: micro-batch within the step, from 0.
        rows: sequences in this rank's micro-batch.
        first_row: index of its first sequence within the micro-batch over all ranks; with it the choice of rows does
            not repeat from rank to rank. How *many* rows run is the same on every rank: no rank waits for another.
        device: where the row indices go (one copy for all blocks).
        zero_gradient_when_dropped: see `run_gated`.
    """
    probabilities = schedule.keep_probabilities(step)
    if granularity == "batch":
        blocks = _draw_for_batch(probabilities, seed, step, micro_step)
        kept = float(sum(gate.keep for gate in blocks))
    else:
        blocks = _draw_for_samples(probabilities, seed, step, micro_step, rows, first_row, device)
        kept = sum(len(gate.rows) if gate.rows is not None else rows for gate in blocks) / rows
    if zero_gradient_when_dropped:
        blocks = [dataclasses.replace(gate, zero_gradient_when_dropped=True) for gate in blocks]
    return Gates(tuple(blocks), schedule.theta(step), kept)


def _draw_for_batch(probabilities: Sequence[float], seed: int, step: int, micro_step: int) -> list[BlockGate]:
    index = np.arange(len(probabilities))
    draws = to_unit_interval(random_words(seed, Stream.GATES, index, micro_step, step)[0])
    return [
        BlockGate(keep=bool(draw < p), scale=1.0 / p, keep_probability=p)
        for draw, p in zip(draws, probabilities, strict=True)
    ]


def _draw_for_samples(
    probabilities: Sequence[float],
    seed: int,
    step: int,
    micro_step: int,
    rows: int,
    first_row: int,
    device: torch.device | str,
) -> list[BlockGate]:
    # Systematic sampling: k_l = floor(c_l + u) − floor(c_{l−1} + u), with c_l = Σ_{j ≤ l} rows · p_j and one u for all.
    # It couples the counts, so 1 / p_l would bias products over blocks; given the counts, the blocks' rows are
    # independent and each row's chance is k_l / rows, so rows / k_l does not.
    expected = np.asarray(probabilities) * rows
    never_empty = expected >= 1.0
    coupled, single = random_words(seed, Stream.GATES, np.arange(len(probabilities)), micro_step, step)[:2]
    ends = np.concatenate([[0.0], np.cumsum(np.where(never_empty, expected, 0.0))])
    counts = np.minimum(np.diff(np.floor(ends + to_unit_interval(coupled)[0]).astype(np.int64)), rows)
    counts = np.where(never_empty, counts, to_unit_interval(single) < expected)
    scales = np.where(never_empty & (counts > 0), rows / np.maximum(counts, 1), 1.0 / np.asarray(probabilities))
    block, row = np.ogrid[: len(probabilities), first_row : first_row + rows]
    priority = random_words(seed, Stream.GATE_ROWS, row, block, step, micro_step)[0]
    ranked = np.argsort(priority, axis=1, kind="stable")
    chosen = [np.sort(ranked[index, :count]) for index, count in enumerate(counts)]
    together = torch.from_numpy(np.concatenate(chosen))
    if torch.device(device).type == "cuda":
        together = together.pin_memory()
    uploaded = together.to(device, non_blocking=True).split(counts.tolist())
    return [
        BlockGate(
            keep=bool(count),
            scale=scale,
            keep_probability=p,
            rows=None if count == rows else index,
            host_rows=None if count == rows else host,
        )
        for count, scale, p, index, host in zip(counts, scales.tolist(), probabilities, uploaded, chosen, strict=True)
    ]


def run_gated(
    block: Callable[..., torch.Tensor],
    hidden_states: torch.Tensor,
    gate: BlockGate | None,
    *per_row: torch.Tensor | None,
) -> torch.Tensor:
    """Run a block under its gate; what a model's loop over blocks calls.

    Args:
        block: called as `block(hidden_states, *per_row, scale=…)`; returns the new hidden states, its own residual
            connections included, with every sub-layer's output multiplied by `scale` before it is added.
        hidden_states: [rows, …].
        gate: None runs the block on all rows unscaled (evaluation).
        per_row: further tensors with `rows` in dimension 0, or None; gathered with the hidden states.

    A dropped block runs no kernel, forward or backward. Under ZeRO-3 that would be silently wrong: a parameter whose
    module was not entered takes no part in the partitioned reduction. With `zero_gradient_when_dropped` such a block
    runs on an empty batch, which gives its parameters zero gradients of the right shape at next to no cost.
    """
    if gate is None:
        return block(hidden_states, *per_row, scale=1.0)
    if not gate.keep:
        if gate.zero_gradient_when_dropped and torch.is_grad_enabled():
            empty = [None if tensor is None else tensor[:0] for tensor in per_row]
            return hidden_states + block(hidden_states[:0], *empty, scale=gate.scale).sum()
        return hidden_states
    if gate.rows is None:
        return block(hidden_states, *per_row, scale=gate.scale)
    gathered = [None if tensor is None else tensor.index_select(0, gate.rows) for tensor in per_row]
    updated = block(hidden_states.index_select(0, gate.rows), *gathered, scale=gate.scale)
    return hidden_states.index_copy(0, gate.rows, updated)
