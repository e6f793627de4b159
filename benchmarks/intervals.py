"""Confidence interval of a mean over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean: (low, high); None for fewer than two values, NaN if one is not finite.

    Of differences within a seed this is the interval of the paired t test.
    """
    if len(values) < 2:
        return None
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    mean = statistics.fmean(values)
    half = student_quantile(confidence, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def student_quantile(confidence: float, degrees: int) -> float:
    """Return the t within which Student's distribution has this share of its weight, on both sides of 0.

    scipy has it too, but is larger than all other packages that a host with a GPU needs for its check.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if _weight(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _weight(angle: float, degrees: int) -> float:
    """Return the weight within t = √degrees · tan(angle): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = degrees % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(3 if odd else 2, degrees, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if degrees > 1 else 0.0))
