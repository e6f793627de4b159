"""A signal to stop, heeded by all ranks at once: what is finished stays, the fine-tuning under way is left."""

from __future__ import annotations

import torch.distributed as dist

from bert_pld.cluster.agreement import StepAgreement
from bert_pld.cluster.signals import Preemption


class StoppedError(Exception):
    """A rank was told to stop; raised on all of them at the same step."""


class SharedSignal:
    """Whether any rank was told to stop; asked often, for it waits neither for the device nor for other ranks."""

    def __init__(self, preemption: Preemption) -> None:
        """After the process group is joined, on all ranks."""
        self._preemption = preemption
        self._alone = dist.get_world_size() == 1
        self._agreement = StepAgreement(None if self._alone else dist.new_group(backend="gloo"))

    def check(self) -> None:
        """Leave if any rank was told to. Called at the same places on every rank.

        Raises:
            StoppedError: a signal came; with several ranks, before the last call.
        """
        told, _ = self._agreement.take()
        if self._preemption.signalled if self._alone else told:
            raise StoppedError
        self._agreement.post(self._preemption.signalled, True)
