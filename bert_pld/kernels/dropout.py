"""Dropout; on a CPU with four keep decisions drawn from each random integer.

torch draws one float a decision on a CPU, serially: 15 % of a training step. Sixteen bits decide as well; the keep
probability is then a multiple of 2^-16, and the scale is that very probability's inverse, so the expectation is exact.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 2**16
_DECISIONS_PER_INTEGER = 4


def dropout(values: Tensor, probability: float) -> Tensor:
    """values · mask / P[kept], with P[mask = 0] = `probability` (to 2^-17), from torch's generator of the device."""
    if probability == 0.0:
        return values
    if not draws_integers(values):
        return F.dropout(values, probability)
    dropped_levels = round(probability * _LEVELS)
    keep = _random_levels(values.shape) >= dropped_levels - _LEVELS // 2
    return values * keep.to(values.dtype).mul_(_LEVELS / (_LEVELS - dropped_levels))


def draws_integers(values: Tensor) -> bool:
    """Whether dropout of these values is drawn here: on a CPU, in eager mode (a compiler fuses torch's own)."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _random_levels(shape: torch.Size) -> Tensor:
    """int16, uniform over all its values."""
    count = shape.numel()
    integers = torch.empty(-(-count // _DECISIONS_PER_INTEGER), dtype=torch.int64).random_(-(2**63), None)
    return integers.view(torch.int16)[:count].view(shape)
