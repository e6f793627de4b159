"""What ranks agree on at each step without waiting for each other."""

from __future__ import annotations

import torch
import torch.distributed as dist


class StepAgreement:
    """What all ranks know of each other at a step: whether any was told to stop, whether all have written.

    One asynchronous all-reduce of two host integers a step, read one step later: it waits neither for the device nor,
    in practice, for the network.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        """`group` is one of the host's (gloo), or None for a single rank."""
        self._group = group
        self._flags = torch.zeros(2, dtype=torch.int32)
        self._pending: dist.Work | None = None

    def post(self, stop: bool, written: bool) -> None:
        """Say what holds on this rank. Once a step, on every rank."""
        self._flags[0], self._flags[1] = int(stop), int(not written)
        if self._group is not None:
            self._pending = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def take(self) -> tuple[bool, bool]:
        """(whether any rank has to stop, whether all have written) as posted last; the same answer on every rank."""
        if self._group is not None:
            if self._pending is None:
                return False, False
            self._pending.wait()
            self._pending = None
        stop, unwritten = self._flags.tolist()
        return bool(stop), not unwritten
