"""How much work the blocks do, in a micro-batch or on average over a schedule. FLOPs are computed from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bert_pld.pld.schedule import Schedule
from bert_pld.pld.subsets import kept_counts

Granularity = Literal["batch", "sample", "token"]


@dataclasses.dataclass(frozen=True)
class BlockWork:
    """How much of L blocks runs. Block l runs with probability p_l, or on the share p_l of the rows or tokens."""

    depth: float
    """Σ p_l: the number of blocks that run; at token granularity p_l is rounded to whole tokens."""
    square: float
    """Σ p_l² at token granularity, where attention is among the kept tokens; else `depth`."""
    last_whole: float
    """How often the last block that runs does so on all rows and tokens.

    It then computes what follows attention only where a loss looks. At sample granularity, a share just below 1 counts
    as not whole, though rounding may make a block run on all rows.
    """

    @classmethod
    def of(cls, kept: Sequence[float], granularity: Granularity, seq_length: int) -> BlockWork:
        """Return the work of a micro-batch of full sequences with p_l = `kept[l - 1]`."""
        return _work((np.array([share]) for share in kept), granularity, seq_length)


def mean_work(schedule: Schedule, num_steps: int, granularity: Granularity, seq_length: int) -> BlockWork:
    """Return the work of full sequences, averaged over optimizer steps 0 … num_steps − 1."""
    drops = 1.0 - schedule.thetas(num_steps)
    return _work((1.0 - weight * drops for weight in schedule.drop_weights), granularity, seq_length)


def _work(kept: Iterable[NDArray[np.float64]], granularity: Granularity, seq_length: int) -> BlockWork:
    """Average over steps; `kept` yields p_l of each step, block by block."""
    depth = square = last_whole = 0.0
    none_runs: NDArray[np.float64] | float = 1.0
    for shares in kept:
        # A block runs on a whole number of tokens.
        run = kept_counts(shares, np.array([seq_length])) / seq_length if granularity == "token" else shares
        depth, square = depth + float(run.mean()), square + float((run * run).mean())
        none_runs, last_whole = none_runs * (1.0 - run), float((run == 1.0).mean())
    if granularity == "batch":
        last_whole = 1.0 - float(np.mean(none_runs))
    return BlockWork(depth, square if granularity == "token" else depth, last_whole)
