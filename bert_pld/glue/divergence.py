"""Fine-tunings whose loss stopped being finite: results without a score, whose learning rates never win."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def diverged(result: dict[str, Any]) -> bool:
    """Whether a `result.json` says so."""
    return result.get("diverged_at_step") is not None


def warning(result: dict[str, Any]) -> str:
    """One line about a fine-tuning that diverged."""
    of = result["conditions"]
    return (
        f"warning: {result['task']}, lr {of['learning_rate']:g}, seed {of['seed']}: diverged; loss or weights are not"
        f" finite at step {result['diverged_at_step']} of {result['steps']}, so it has no score"
    )


def by_learning_rate(results: Iterable[dict[str, Any]]) -> dict[float, list[dict[str, Any]]]:
    """Results by their learning rate."""
    found: dict[float, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(result["conditions"]["learning_rate"], []).append(result)
    return found


def scored_rates(results: Iterable[dict[str, Any]]) -> dict[float, list[dict[str, Any]]]:
    """The learning rates that have a score with each of their seeds, and their results."""
    return {rate: runs for rate, runs in by_learning_rate(results).items() if not any(map(diverged, runs))}
