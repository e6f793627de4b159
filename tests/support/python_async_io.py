"""DeepSpeed's async_io in Python, which needs neither libaio nor minutes of compiling: what its swappers call of it."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch


class _Handle:
    """Reads and writes at once; a tensor counts as locked in memory if a handle has made it."""

    _locked: dict[int, int] = {}

    def __init__(self, **settings: Any) -> None:
        self._done = 0

    def async_pwrite(self, tensor: torch.Tensor, path: str, offset: int) -> int:
        _check_alignment(tensor)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT), "wb") as file:
            file.write(tensor.detach().numpy().data)
        self._done += 1
        return 0

    def async_pread(self, tensor: torch.Tensor, path: str, offset: int) -> int:
        _check_alignment(tensor)
        values = np.fromfile(path, tensor.detach().numpy().dtype, tensor.numel())
        assert len(values) == tensor.numel(), f"{path} is cut short"
        tensor.detach().copy_(torch.from_numpy(values))
        self._done += 1
        return 0

    def wait(self) -> int:
        done, self._done = self._done, 0
        return done

    def new_cpu_locked_tensor(self, numel: int, example: torch.Tensor) -> torch.Tensor:
        room = torch.full((numel + 4096,), torch.nan, dtype=example.dtype)
        first = -room.data_ptr() % 4096 // room.element_size()
        tensor = room[first : first + numel]
        self._locked[tensor.data_ptr()] = tensor.nbytes
        return tensor

    def free_cpu_locked_tensor(self, tensor: torch.Tensor) -> None:
        self._locked.pop(tensor.data_ptr(), None)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        begin = tensor.data_ptr()
        return any(first <= begin and begin + tensor.nbytes <= first + size for first, size in self._locked.items())


def _check_alignment(tensor: torch.Tensor) -> None:
    """Direct reading and writing of a disk fails otherwise, and DeepSpeed would not notice."""
    assert (tensor.data_ptr() % 512, tensor.nbytes % 512) == (0, 0)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let DeepSpeed build this module instead of its own."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose=False: True)
    monkeypatch.setattr(AsyncIOBuilder, "load", lambda self, verbose=False: SimpleNamespace(aio_handle=_Handle))
