"""A signal to stop: finish the step, checkpoint, exit with a code that a batch script turns into a requeue."""

from __future__ import annotations

import signal
from types import FrameType

EXIT_PREEMPTED = 75
"""sysexits' EX_TEMPFAIL: try again later."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """Catches SIGTERM and SIGUSR1 from when it is made: before imports that take seconds, for they may come then."""

    def __init__(self) -> None:
        self.signalled = False
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True
