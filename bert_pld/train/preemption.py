"""A signal to stop: finish the step, checkpoint, exit with a code that a batch script turns into a requeue."""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist

EXIT_PREEMPTED = 75
"""sysexits' EX_TEMPFAIL: try again later."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """Catches SIGTERM and SIGUSR1; all ranks agree on the step at which they stop.

    The agreement is one asynchronous all-reduce of a host integer a step, read one step later: it waits neither for
    the device nor, in practice, for the network.
    """

    def __init__(self) -> None:
        self._signalled = False
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._pending: dist.Work | None = None
        several = dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def close(self) -> None:
        """Wait for the last agreement, which nobody asks for any more."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    def agreed(self) -> bool:
        """Whether to stop after the present step; the same answer on every rank. Call once a step."""
        if self._group is None:
            return self._signalled
        stop = False
        if self._pending is not None:
            self._pending.wait()
            stop = bool(self._flag.item())
        self._flag.fill_(int(self._signalled))
        self._pending = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return stop
