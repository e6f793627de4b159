"""Signals that ask a run to stop: it finishes the step, saves a checkpoint and exits with a code that means requeue.

This module does not import torch: a command installs the handlers before that import, which takes seconds in which a
signal may already arrive.
"""

from __future__ import annotations

import signal
from types import FrameType

EXIT_PREEMPTED = 75
"""Exit code of a run that was asked to stop and can be resumed: EX_TEMPFAIL of sysexits.h."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """Handles SIGTERM and SIGUSR1 from its construction on."""

    def __init__(self) -> None:
        self.stop_requested = False
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True
