"""Stopping a run after a step: the signals that ask for it, and the agreement of all ranks, without waiting.

Commands install the handlers before they import torch, which takes seconds in which a signal may already arrive. So
this module imports it only where it is used.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch.distributed as dist

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


class StepAgreement:
    """Lets all ranks know whether any was asked to stop, and whether all have written their checkpoint files.

    At each step one asynchronous all-reduce of two integers on the host is started, and its result is read one step
    later. So it waits neither for the device nor, in practice, for the network.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        """`group` is a gloo group of all ranks; None for a single rank."""
        import torch

        self._group = group
        self._flags = torch.zeros(2, dtype=torch.int32)
        self._pending: dist.Work | None = None

    def post(self, stop_requested: bool, written: bool) -> None:
        """Share this rank's state; every rank calls it once a step."""
        import torch.distributed as dist

        self._flags[0], self._flags[1] = int(stop_requested), int(not written)
        if self._group is not None:
            self._pending = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def result(self) -> tuple[bool, bool]:
        """Return (whether any rank was asked to stop, whether all ranks have written) as of the last `post`.

        The answer is the same on every rank; before the first `post` of several ranks it is (False, False).
        """
        if self._group is not None:
            if self._pending is None:
                return False, False
            self._pending.wait()
            self._pending = None
        stop_requested, unwritten = self._flags.tolist()
        return bool(stop_requested), not unwritten
