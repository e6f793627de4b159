"""Checks of command-line options: lists joined by commas, shares, devices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions by their name in options; with DeepSpeed, the precision of the whole model."""


def chosen(option: str, text: str, allowed: Sequence[str]) -> list[str]:
    """Parse a list of names; a repeated one counts once. Raise ValueError if it is empty or a name is not allowed."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in allowed]
    if unknown or not names:
        raise ValueError(f"{option} {text}: must be a list of {', '.join(allowed)}, joined by commas")
    return list(dict.fromkeys(names))


def positive_integers(option: str, text: str) -> list[int]:
    """Parse a list of positive integers; a repeated one counts once. Raise ValueError for any other entry."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option} {text}: must be positive integers joined by commas")
    return list(dict.fromkeys(map(int, parts)))


def fractions(option: str, text: str) -> list[float]:
    """Parse a list of numbers above 0 and at most 1; raise ValueError for any other entry."""
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(0.0 < value <= 1.0 for value in values):
        raise ValueError(f"{option} {text}: must be numbers in (0, 1], joined by commas")
    return values


def check_fraction(option: str, value: float) -> None:
    """Raise ValueError unless a number is above 0 and at most 1."""
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{option} {value:g}: must be a number in (0, 1]")


def present_device(text: str) -> torch.device:
    """Parse `--device`; raise ValueError unless it names the CPU or a GPU of this machine."""
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ValueError(f"--device {text}: must be cuda or cpu")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {text}: this machine has no {'such ' if torch.cuda.device_count() else ''}GPU")
    return torch.device(text)
