"""How far a build is: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Progress of one stage over a known number of bytes, on standard error.

    Shows the share done, documents and megabytes a second, and the time left at the average speed so far.
    """

    def __init__(self, stage: str, total_bytes: int, done_bytes: int = 0) -> None:
        self.stage = stage
        self.total = max(total_bytes, 1)
        self.done = self.done_before = done_bytes
        self.documents = 0
        self.on_terminal = sys.stderr.isatty()
        self.began = time.monotonic()
        self._next_line = self.began + SECONDS_BETWEEN_LINES

    def __enter__(self) -> Progress:
        if self.on_terminal:
            self.bar = tqdm(
                total=self.total, initial=self.done, desc=self.stage, unit="B", unit_scale=True, dynamic_ncols=True
            )
        else:
            print(f"{self.stage}: {self.total / 1e6:.1f} MB", file=sys.stderr, flush=True)
        return self

    def advance(self, count: int, documents: int = 0) -> None:
        """Count another task's bytes and documents as done."""
        self.done += count
        self.documents += documents
        now = time.monotonic()
        if self.on_terminal:
            if self.documents:
                self.bar.set_postfix_str(f"{self._documents_per_s(now):,.0f} documents/s", refresh=False)
            self.bar.update(count)
        elif now >= self._next_line:
            self._next_line = now + SECONDS_BETWEEN_LINES
            print(self.line(now), file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """The state of things in one line, at a time of the monotonic clock."""
        bytes_per_s = (self.done - self.done_before) / max(now - self.began, 1e-9)
        left = (self.total - self.done) / max(bytes_per_s, 1e-9)
        documents = f", {self._documents_per_s(now):,.0f} documents/s" if self.documents else ""
        return (
            f"{self.stage}: {self.done / self.total:.0%}{documents}, {bytes_per_s / 1e6:.1f} MB/s,"
            f" {tqdm.format_interval(left)} left"
        )

    def _documents_per_s(self, now: float) -> float:
        return self.documents / max(now - self.began, 1e-9)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.on_terminal:
            self.bar.close()
