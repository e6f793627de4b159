"""How far a build is: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Progress of one stage over a known number of bytes, on standard error."""

    def __init__(self, stage: str, total_bytes: int, done_bytes: int = 0) -> None:
        self.stage = stage
        self.total = max(total_bytes, 1)
        self.done = done_bytes
        self.on_terminal = sys.stderr.isatty()
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def __enter__(self) -> Progress:
        if self.on_terminal:
            self.bar = tqdm(
                total=self.total, initial=self.done, desc=self.stage, unit="B", unit_scale=True, dynamic_ncols=True
            )
        else:
            print(f"{self.stage}: {self.total / 1e6:.1f} MB", file=sys.stderr, flush=True)
        return self

    def advance(self, count: int) -> None:
        """Count another task's bytes as done."""
        self.done += count
        if self.on_terminal:
            self.bar.update(count)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            print(f"{self.stage}: {self.done / self.total:.0%}", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.on_terminal:
            self.bar.close()
