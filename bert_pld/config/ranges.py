"""Messages about keys of a block that are out of range."""

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
