"""Confidence interval of a mean over seeds."""

from __future__ import annotations

from collections.abc import Sequence


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean: (low, high); None for fewer than two values.

    Of differences within a seed this is the interval of the paired t test.
    """
    from scipy.stats import ttest_1samp

    if len(values) < 2:
        return None
    if len(set(values)) == 1:  # scipy warns about values without a spread
        return values[0], values[0]
    low, high = ttest_1samp(values, 0.0).confidence_interval(confidence)
    return float(low), float(high)
