"""Gates: which blocks run, on which rows or tokens, with which scale.

They are functions of (seed, step, micro-step, block, row) alone. No global random generator is read or advanced. So
all ranks agree without communication, a resumed run draws the same gates, and activation checkpointing, which receives
the same `BlockGate` again, recomputes the same blocks. A block is sampled and scaled with the same p_l, so that
E[gate / p_l] = 1 (the published code scaled with the next block's). For any set of different blocks the expectation of
the product of a row's scaled gates is 1, at batch and at sample granularity. At token granularity the branches are not
scaled: every block runs on p_l of the tokens at every step, and a dense finish lets the network adapt to all blocks on
all tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from bert_pld.pld.schedule import Schedule
from bert_pld.pld.subsets import TokenSubset, draw_token_subsets, run_on_rows, upload
from bert_pld.rng import Stream, random_words, to_unit_interval


@dataclasses.dataclass(frozen=True)
class BlockGate:
    """The gate of one block for one micro-batch."""

    keep: bool
    """Whether the block runs."""
    scale: float
    """Factor of the sub-layers' outputs: 1 / keep_probability; at sample granularity rows / k for a block that runs on
    k of the rows, if it always runs on one at least; 1 at token granularity."""
    keep_probability: float
    rows: torch.Tensor | None = None
    """int64 [k], ascending: the rows that the block runs on; None: all rows."""
    zero_gradient_when_dropped: bool = False
    """Run a dropped block on an empty batch, so that its parameters get zero gradients (see `run_gated`)."""
    host_rows: NDArray[np.int64] | None = None
    """A copy of `rows` on the host."""
    tokens: TokenSubset | None = None
    """The tokens that the block runs on; None: all tokens."""

    @property
    def rows_on_host(self) -> NDArray[np.int64] | None:
        """`rows` as an array on the host; without `host_rows` this waits for the device."""
        if self.host_rows is not None or self.rows is None:
            return self.host_rows
        return self.rows.cpu().numpy()


@dataclasses.dataclass(frozen=True)
class Gates(Sequence[BlockGate]):
    """The gates of all blocks for one micro-batch, in depth order."""

    blocks: tuple[BlockGate, ...]
    theta: float
    kept_blocks: float
    """Number of blocks that run; a block counts as the share of the rows or tokens that it runs on."""

    def __getitem__(self, index: Any) -> Any:
        return self.blocks[index]

    def __len__(self) -> int:
        return len(self.blocks)


def last_whole_block(gates: Sequence[BlockGate] | None, num_blocks: int) -> int | None:
    """Return the last block that runs if it runs on all rows and tokens, else None."""
    if gates is None:
        return num_blocks - 1
    last = max((index for index, gate in enumerate(gates) if gate.keep), default=None)
    if last is None or gates[last].rows is not None or gates[last].tokens is not None:
        return None
    return last


def runs_dropped_last(gates: Sequence[BlockGate] | None) -> bool:
    """Return whether the last block is dropped, but runs for zero gradients (see `run_gated`)."""
    return gates is not None and not gates[-1].keep and gates[-1].zero_gradient_when_dropped


def draw_gates(
    schedule: Schedule,
    *,
    granularity: Literal["batch", "sample", "token"],
    seed: int,
    step: int,
    rows: int,
    micro_step: int = 0,
    first_row: int = 0,
    lengths: NDArray[np.int64] | None = None,
    padded_length: int | None = None,
    masked_positions: torch.Tensor | None = None,
    near_masked: int = 0,
    same_tokens: bool = False,
    device: torch.device | str = "cpu",
    zero_gradient_when_dropped: bool = False,
) -> Gates:
    """Draw the gates of one micro-batch.

    Args:
        schedule: the keep probabilities p_l over steps and depth.
        granularity: `batch`: each block is kept independently with P[keep] = p_l, for all rows or for none. `sample`:
            block l runs on k_l of the rows with the scale rows / k_l. k_l is the systematic rounding of rows · p_l, so
            that E[k_l] = rows · p_l and Σ k_l varies by at most one between micro-batches. A block with
            rows · p_l < 1 may run on no row; it is drawn independently of the others, scaled with 1 / p_l, and its row
            adds to that constant sum. `token`: block l runs on a random p_l of each sequence's tokens, unscaled (see
            `draw_token_subsets`).
        seed: seed of the gates, in [0, 2^32).
        step: optimizer step, from 0.
        rows: sequences in this rank's micro-batch.
        micro_step: micro-batch within the step, from 0.
        first_row: index of this rank's first sequence within the micro-batch over all ranks, so that ranks choose
            different rows. The *number* of rows is the same on every rank, so that no rank waits for another.
        lengths: [rows], number of tokens of each sequence without padding, on the host; required at token granularity.
        padded_length: tokens of a sequence with padding; required at token granularity.
        masked_positions: int64 [M], indices into the flattened [rows · padded_length]: tokens that a block at token
            granularity runs on before all others; None treats all tokens alike.
        near_masked: the distance within which the tokens around a masked one come before the rest; 0: they do not.
        same_tokens: at token granularity, whether blocks of equal share run on the same tokens.
        device: device of the row indices, which one copy uploads for all blocks.
        zero_gradient_when_dropped: see `run_gated`.
    """
    probabilities = schedule.keep_probabilities(step)
    if granularity == "batch":
        blocks = _draw_for_batch(probabilities, seed, step, micro_step)
        kept = float(sum(gate.keep for gate in blocks))
    elif granularity == "token":
        assert lengths is not None
        assert padded_length is not None
        subsets = draw_token_subsets(
            probabilities,
            seed=seed,
            step=step,
            micro_step=micro_step,
            first_row=first_row,
            lengths=lengths,
            padded_length=padded_length,
            device=device,
            preferred=masked_positions,
            near=near_masked,
            same=same_tokens,
        )
        blocks = [
            BlockGate(keep=True, scale=1.0, keep_probability=p, tokens=subset)
            for p, subset in zip(probabilities, subsets, strict=True)
        ]
        total = int(lengths.sum())
        kept = sum(1.0 if subset is None else int(subset.counts.sum()) / total for subset in subsets)
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
    # Systematic sampling: k_l = floor(c_l + u) − floor(c_{l−1} + u), with c_l = Σ_{j ≤ l} rows · p_j and one u for all
    # blocks. The counts k_l depend on each other, so the scale 1 / p_l would bias products over blocks. Given the
    # counts, the blocks choose their rows independently, each row with probability k_l / rows: rows / k_l is unbiased.
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
    uploaded = upload(np.concatenate(chosen), device).split(counts.tolist())
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
    accepts_no_rows: bool = False,
) -> torch.Tensor:
    """Run a block under its gate; a model calls this for each block instead of the block.

    Args:
        block: called as `block(hidden_states, *per_row, scale=…)`. It returns the new hidden states, residual
            connections included, and multiplies every sub-layer's output by `scale` before adding it.
        hidden_states: [rows, …]; at token granularity [rows, tokens, …].
        gate: the block's gate; None runs the block on all rows unscaled (evaluation).
        per_row: more tensors with `rows` in dimension 0, or None; they are gathered like the hidden states. At token
            granularity those with `tokens` in dimension 1 are gathered in both dimensions.
        accepts_no_rows: whether the block runs on a batch of no rows, which `view(rows, -1)` does not.

    At token granularity the block gets shorter sequences, whose tokens are in the same order but no longer neighbours.
    So what depends on positions must come in `per_row` (rotary positions, an attention mask [rows, tokens]), and the
    block must not compute them from indices.

    A dropped block runs no kernel, forward or backward. Under ZeRO-3 this alone would silently train incorrectly: the
    partitioned reduction leaves out the parameters of a module whose forward did not run. With
    `zero_gradient_when_dropped` such a block runs on no rows if it can, else on one row whose output is not used. Its
    parameters then have zero gradients of the right shape.
    """
    if gate is None:
        return block(hidden_states, *per_row, scale=1.0)
    if not gate.keep:
        if gate.zero_gradient_when_dropped and torch.is_grad_enabled():
            rows = 0 if accepts_no_rows else 1
            few = [None if tensor is None else tensor[:rows] for tensor in per_row]
            # The sum of no elements: a sum of all of them, times zero, would be NaN where it overflows in fp16.
            return hidden_states + block(hidden_states[:rows], *few, scale=gate.scale).reshape(-1)[:0].sum()
        return hidden_states
    if gate.tokens is not None:
        return _run_on_tokens(block, hidden_states, gate.tokens, gate.scale, per_row)
    if gate.rows is None:
        return block(hidden_states, *per_row, scale=gate.scale)
    gathered = [None if tensor is None else tensor.index_select(0, gate.rows) for tensor in per_row]
    return run_on_rows(lambda chosen: block(chosen, *gathered, scale=gate.scale), hidden_states, gate.rows)


def merge_same_tokens(
    calls: Iterable[tuple[Callable[..., torch.Tensor], BlockGate | None]],
) -> Iterator[tuple[Callable[..., torch.Tensor], BlockGate | None]]:
    """Merge neighbouring blocks that run on the same tokens, so that `run_gated` gathers them once for all.

    Takes the blocks in depth order, each with its gate, and yields what to run under which gate. A merged block is
    called as each of its blocks is. All other blocks are yielded as they are.
    """
    for _, group in itertools.groupby(enumerate(calls), _tokens_or_own_number):
        blocks, gates = zip(*(call for _, call in group), strict=True)
        yield blocks[0] if len(blocks) == 1 else functools.partial(_run_in_turn, blocks), gates[0]


def _tokens_or_own_number(numbered: tuple[int, tuple[Any, BlockGate | None]]) -> tuple[str, int]:
    number, (_, gate) = numbered
    return ("block", number) if gate is None or gate.tokens is None else ("tokens", id(gate.tokens))


def _run_in_turn(
    blocks: Sequence[Callable[..., torch.Tensor]], hidden_states: torch.Tensor, *per_row: Any, scale: float
) -> torch.Tensor:
    for block in blocks:
        hidden_states = block(hidden_states, *per_row, scale=scale)
    return hidden_states


def _run_on_tokens(
    block: Callable[..., torch.Tensor],
    hidden_states: torch.Tensor,
    tokens: TokenSubset,
    scale: float,
    per_row: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    rows, length = hidden_states.shape[:2]
    index, width = tokens.index, tokens.width

    def gather(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None or tensor.shape[:2] != (rows, length):
            return tensor
        return tensor.flatten(0, 1).index_select(0, index).unflatten(0, (rows, width))

    def run(chosen: torch.Tensor) -> torch.Tensor:
        updated = block(chosen.unflatten(0, (rows, width)), *map(gather, per_row), scale=scale)
        return updated.flatten(0, 1)

    return run_on_rows(run, hidden_states.flatten(0, 1), index).view_as(hidden_states)
