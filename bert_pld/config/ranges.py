"""Messages about keys of a block that are out of range, and durations that are a share of the run or steps."""

from __future__ import annotations

from collections.abc import Iterable


def check_least(block: object, least: int, *keys: str, note: str = "") -> Iterable[str]:
    """Yield a message for each key of a block whose value is smaller."""
    for key in keys:
        value = getattr(block, key)
        if value is not None and value < least:
            yield f"{key}: {value}; must be >= {least}{note}"


def check_most(block: object, most: int, *keys: str) -> Iterable[str]:
    """Yield a message for each key that is larger: sizes that are typing errors, before anything counts up to them."""
    for key in keys:
        value = getattr(block, key)
        if value is not None and value > most:
            yield f"{key}: {value}; must be at most {most}"


def check_durations(block: object, *keys: str) -> Iterable[str]:
    """Yield a message for each key that is neither a share of the run, below 1, nor a whole number of steps."""
    for key in keys:
        value = getattr(block, key)
        if value is not None and (value < 0 or (value >= 1 and value != int(value))):
            yield f"{key}: {value:g}; must be a share of the run in [0, 1), or a whole number of steps"


def duration_in_steps(value: float, max_steps: int) -> float:
    """Return a duration that `check_durations` allows as a number of steps of a run of `max_steps`."""
    return float(round(value * max_steps) if value < 1 else value)
