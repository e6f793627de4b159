"""Is one model ahead of another? Differences of mean dev scores, with Welch's interval over seeds of fine-tuning."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from bert_pld.glue.tasks import TASKS


def difference(first: Mapping[str, Any], second: Mapping[str, Any], confidence: float = 0.95) -> tuple[float, ...]:
    """Of two means, and the ends of its interval: Student's t with Welch's degrees of freedom (Biometrika 34, 1947).

    Args:
        first: `mean`, `deviation` (the sample's) and `n`, as `summarize` gives them.
        second: what is subtracted.
        confidence: the share of such intervals that hold the true difference.

    Returns:
        (difference, low, high); the difference alone where one of them has a single seed.
    """
    from scipy.stats import t

    value = first["mean"] - second["mean"]
    if min(first["n"], second["n"]) < 2:
        return (value,)
    variances = [one["deviation"] ** 2 / one["n"] for one in (first, second)]
    total = sum(variances)
    if total == 0:
        return (value, value, value)
    parts = sum(v**2 / (one["n"] - 1) for v, one in zip(variances, (first, second), strict=True))
    half = float(t.ppf((1 + confidence) / 2, total**2 / parts)) * math.sqrt(total)
    return (value, value - half, value + half)


def differences_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a pair of models a row, a task a column, bold where the interval leaves 0 out; nothing for one model.

    What is compared is each model's `score` of a task, the mean of its metrics at the model's own best learning rate.
    The intervals are of each pair by itself, not corrected for how many there are.

    Args:
        summaries: a model's name → what `summarize` gave.
    """
    names = [name for name in TASKS if any(name in summary["tasks"] for summary in summaries.values())]
    lines = [f"| difference, 95 % | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for first, second in itertools.combinations(summaries, 2):
        cells = [_cell(summaries[first]["tasks"].get(name), summaries[second]["tasks"].get(name)) for name in names]
        lines.append(f"| {first} − {second} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _cell(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> str:
    if first is None or second is None or first["score"] is None or second["score"] is None:
        return "–"
    value, *ends = difference(first["score"], second["score"])
    if not ends:
        return f"{value:+.1f}"
    text = f"{value:+.1f} ({ends[0]:+.1f} … {ends[1]:+.1f})"
    return f"**{text}**" if ends[0] > 0 or ends[1] < 0 else text
