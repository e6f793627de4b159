"""The loss at a time and the time to a loss, on a curve of held-out losses that is linear between evaluations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def loss_after(at: float, times: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the loss at a time, or another ascending coordinate; None outside the first and the last evaluation."""
    for (t0, l0), (t1, l1) in itertools.pairwise(zip(times, losses, strict=True)):
        if t0 <= at <= t1:
            return l0 + (l1 - l0) * (at - t0) / (t1 - t0)
    return None


def time_to(loss: float, times: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the first time at which the loss is this or lower; None if it never was."""
    if losses and losses[0] <= loss:
        return times[0]
    for (t0, l0), (t1, l1) in itertools.pairwise(zip(times, losses, strict=True)):
        if l1 <= loss:
            return t0 + (t1 - t0) * (l0 - loss) / (l0 - l1)
    return None
