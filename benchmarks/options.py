"""Command-line lists that subjects share: names or sizes joined by commas."""

from __future__ import annotations

from collections.abc import Sequence


def chosen(option: str, text: str, allowed: Sequence[str]) -> list[str]:
    """The names in a list joined by commas, each once.

    Raises:
        ValueError: none, or one that is not allowed.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in allowed]
    if unknown or not names:
        raise ValueError(f"{option} {text}: must be a list of {', '.join(allowed)}, joined by commas")
    return list(dict.fromkeys(names))


def positive_integers(option: str, text: str) -> list[int]:
    """The sizes in a list joined by commas, each once.

    Raises:
        ValueError: none, or something that is not a positive integer.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option} {text}: must be positive integers joined by commas")
    return list(dict.fromkeys(map(int, parts)))
