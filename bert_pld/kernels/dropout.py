"""Dropout with 16 random bits per element: from torch's generator in eager mode, from a counter in fused kernels.

On a CPU torch draws one float per element serially, which is 15 % of a training step. Here 16 bits decide. So the keep
probability is a multiple of 2^-16; the scale is the inverse of exactly this probability, so the expectation is exact
but for the rounding of each result.

A fused kernel draws its mask from a counter, so that backward can draw the same mask again instead of reading a stored
one. `counter_keep_mask` specifies that mask.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bert_pld.rng import philox_4x32

_LEVELS = 2**16
DECISIONS_PER_COUNTER = 8
"""Keep decisions of 16 bits in the four 32-bit words that Philox returns for one counter."""


def dropout(values: Tensor, probability: float) -> Tensor:
    """Return values · mask / P[mask = 1] with P[mask = 0] = `probability` (± 2^-17; at most 1 − 2^-16).

    The mask comes from torch's generator.
    """
    if probability == 0.0:
        return values
    if not draws_integers(values):
        return F.dropout(values, probability)
    dropped = dropped_levels(probability)
    # int16 values, uniform over the whole range of the type; an int64 holds four of them.
    count = values.numel()
    integers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = integers.view(torch.int16)[:count].view(values.shape) >= dropped - _LEVELS // 2
    # A scalar keeps its precision; in a bf16 mask the scale of p = 0.1 would be 1.109375, not 1.11112.
    return (values * keep.to(values.dtype)).mul_(kept_scale(dropped))


def draws_integers(values: Tensor) -> bool:
    """Whether `dropout` draws its own bits: on a CPU in eager mode; a compiler fuses torch's dropout instead."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


@dataclasses.dataclass(frozen=True)
class CounterDropout:
    """Dropout whose mask is a pure function of this key, the row and the column."""

    probability: float
    """Dropout probability; 0 keeps everything."""
    seed: int = 0
    """Seed of one forward, in [0, 2^62)."""
    site: int = 0
    """Index of this dropout within the forward, in [0, 2^31)."""

    @property
    def key_words(self) -> tuple[int, int]:
        """The seed's low and high 31 bits: as kernel arguments both always have the type int32."""
        return self.seed & 0x7FFFFFFF, self.seed >> 31


NO_DROPOUT = CounterDropout(0.0)


def dropped_levels(probability: float) -> int:
    """Return how many of the 2^16 values of a decision's bits drop the element: not all, so `kept_scale` is finite."""
    return min(round(probability * _LEVELS), _LEVELS - 1)


def kept_scale(dropped: int) -> float:
    """Return 1 / P[kept] for this number of dropping values out of 2^16."""
    return _LEVELS / (_LEVELS - dropped)


def dropout_arguments(dropout: CounterDropout) -> dict[str, Any]:
    """Return the arguments of a kernel that depend on its dropout."""
    dropped = dropped_levels(dropout.probability)
    low, high = dropout.key_words
    return {
        "scale": kept_scale(dropped),
        "seed": low,
        "seed_high": high,
        "site": dropout.site,
        "dropped_levels": dropped,
        "HAS_DROPOUT": dropped > 0,
    }


def counter_keep_mask(dropout: CounterDropout, rows: int, width: int) -> Tensor:
    """Return bool [rows, width]: the elements that fused kernels keep, computed on the host.

    Columns 8·g … 8·g + 7 of row r share the Philox-4x32-10 counter (g, r, site, high word of the seed) under the key
    (low word of the seed, 0). Each 32-bit word decides for two columns; its low half is for the first one.
    """
    low, high = dropout.key_words
    groups = -(-width // DECISIONS_PER_COUNTER)
    words = philox_4x32(np.arange(groups), np.arange(rows)[:, None], dropout.site, high, key=(low, 0))
    halves = np.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], axis=-1)
    keep = halves.reshape(rows, groups * DECISIONS_PER_COUNTER)[:, :width] >= dropped_levels(dropout.probability)
    return torch.from_numpy(keep)
