"""The JSON file of a measurement, and errors as one line of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bert_pld.files import write_json

_MOST_CHARACTERS = 300


def save(result: dict[str, Any], path: Path | None) -> None:
    """Write a result on rank 0, replacing an earlier one atomically; do nothing without a path.

    Long measurements call this after each round, so that a run that is killed keeps its figures.
    """
    if path is not None and os.environ.get("RANK", "0") == "0":
        write_json(path, result)


def one_line(error: BaseException) -> str:
    """An error's type and text in one line; a ValueError is written for users, so its type is left out."""
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:_MOST_CHARACTERS]
