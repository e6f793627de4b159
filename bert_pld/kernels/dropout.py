"""Dropout with sixteen bits a keep decision: of torch's generator in eager mode, of a counter in fused kernels.

torch draws one float a decision on a CPU, serially: 15 % of a training step. Sixteen bits decide as well; the keep
probability is then a multiple of 2^-16, and the scale is that very probability's inverse, so the expectation is exact.

A fused kernel draws its mask from a counter, so that its backward can draw the same mask again instead of reading a
stored one. `counter_keep_mask` is the specification of that mask.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bert_pld.rng import philox_4x32

_LEVELS = 2**16
_DECISIONS_PER_INTEGER = 4
DECISIONS_PER_COUNTER = 8
"""Keep decisions, each of sixteen bits, in the four 32-bit words that Philox gives for a counter."""


def dropout(values: Tensor, probability: float) -> Tensor:
    """values · mask / P[kept], with P[mask = 0] = `probability` (to 2^-17), from torch's generator of the device."""
    if probability == 0.0:
        return values
    if not draws_integers(values):
        return F.dropout(values, probability)
    dropped = dropped_levels(probability)
    keep = _random_levels(values.shape) >= dropped - _LEVELS // 2
    return values * keep.to(values.dtype).mul_(kept_scale(dropped))


def draws_integers(values: Tensor) -> bool:
    """Whether dropout of these values is drawn here: on a CPU, in eager mode (a compiler fuses torch's own)."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _random_levels(shape: torch.Size) -> Tensor:
    """int16, uniform over all its values."""
    count = shape.numel()
    integers = torch.empty(-(-count // _DECISIONS_PER_INTEGER), dtype=torch.int64).random_(-(2**63), None)
    return integers.view(torch.int16)[:count].view(shape)


@dataclasses.dataclass(frozen=True)
class CounterDropout:
    """Dropout whose mask is a pure function of this key, the row and the column."""

    probability: float
    """Of dropping; 0 keeps all."""
    seed: int = 0
    """Of a forward, in [0, 2^62)."""
    site: int = 0
    """Which of the forward's dropouts this is, in [0, 2^31)."""

    @property
    def key_words(self) -> tuple[int, int]:
        """The seed's low and high 31 bits: a kernel's 32-bit arguments that never change their type."""
        return self.seed & 0x7FFFFFFF, self.seed >> 31


NO_DROPOUT = CounterDropout(0.0)


def dropped_levels(probability: float) -> int:
    """Of 2^16 values that a decision's bits can take, how many drop."""
    return round(probability * _LEVELS)


def kept_scale(dropped: int) -> float:
    """1 / P[kept] where that many of 2^16 values drop."""
    return _LEVELS / (_LEVELS - dropped)


def counter_keep_mask(dropout: CounterDropout, rows: int, width: int) -> Tensor:
    """bool [rows, width]: what fused kernels keep, computed on the host.

    Columns 8·g … 8·g + 7 of row r share the Philox-4x32-10 counter (g, r, site, seed's high word) under the key (seed's
    low word, 0); each 32-bit word decides for two columns, its low half first.
    """
    low, high = dropout.key_words
    groups = -(-width // DECISIONS_PER_COUNTER)
    words = philox_4x32(np.arange(groups), np.arange(rows)[:, None], dropout.site, high, key=(low, 0))
    halves = np.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], axis=-1)
    keep = halves.reshape(rows, groups * DECISIONS_PER_COUNTER)[:, :width] >= dropped_levels(dropout.probability)
    return torch.from_numpy(keep)
