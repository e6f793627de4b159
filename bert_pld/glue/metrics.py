"""GLUE's metrics, by scikit-learn and SciPy, in per cent as its tables give them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def score(metrics: Sequence[str], predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Each metric by name, × 100.

    Args:
        metrics: of `accuracy`, `f1` (of class 1), `matthews`, `pearson`, `spearman`.
        predictions: classes, or scores, `[rows]`.
        labels: the same.

    A coefficient that is not defined, as for constant predictions, is 0.
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted, wanted = np.asarray(predictions), np.asarray(labels)
    constant = len(predicted) < 2 or np.ptp(predicted) == 0 or np.ptp(wanted) == 0
    values = {}
    for name in metrics:
        if name == "accuracy":
            value = accuracy_score(wanted, predicted)
        elif name == "f1":
            value = f1_score(wanted, predicted, zero_division=0.0)
        elif name == "matthews":
            value = matthews_corrcoef(wanted, predicted)
        else:
            correlation = {"pearson": pearsonr, "spearman": spearmanr}[name]
            value = 0.0 if constant else correlation(predicted, wanted)[0]
        values[name] = 100.0 * float(value) if math.isfinite(value) else 0.0
    return values


def mean_score(scores: dict[str, float]) -> float:
    """What a task counts with: the mean of its metrics."""
    return sum(scores.values()) / len(scores)
