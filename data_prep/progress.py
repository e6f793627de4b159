"""Progress of a build: tqdm's bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
_LINE = "{desc}: {percentage:.0f}% of {total_fmt}{postfix}, {rate_fmt}, {remaining} left"


class StageProgress(tqdm):
    """Progress of one stage over a known number of bytes, on standard error.

    Shows the share done, documents and megabytes a second, and the time left at the average speed so far.
    """

    def __init__(self, stage: str, total_bytes: int, done_bytes: int = 0) -> None:
        options: dict[str, Any] = {"dynamic_ncols": True}
        if not sys.stderr.isatty():
            options = {"file": _Lines(), "bar_format": _LINE, "mininterval": SECONDS_BETWEEN_LINES, "leave": False}
        self.documents = 0
        super().__init__(
            total=max(total_bytes, 1), initial=done_bytes, desc=stage, unit="B", unit_scale=True, miniters=1,
            smoothing=0, disable=False, **options,
        )  # fmt: skip

    def advance(self, count: int, documents: int = 0) -> None:
        """Add the bytes and documents of a task that is done."""
        self.documents += documents
        if self.documents:
            per_second = self.documents / max(self.format_dict["elapsed"], 1e-9)
            self.set_postfix_str(f"{per_second:,.0f} documents/s", refresh=False)
        self.update(count)


class _Lines:
    """A file for tqdm that turns each state of the bar, which tqdm would draw over the last one, into a line."""

    def write(self, text: str) -> None:
        line = text.strip().removesuffix(", ?B/s, ? left")  # The first line has no speed yet.
        if line:
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass
