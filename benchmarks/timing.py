"""Clocks, GPU memory and the rate of a matrix product, for measurements of training steps."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

import torch

_MATRIX_SIZE = {"cuda": 8192, "cpu": 512}
_PRODUCTS = {"cuda": 20, "cpu": 5}


class StepClock:
    """Times of consecutive steps; the host does not wait for the device between them.

    On a CPU, `now` may also be `time.process_time`, which does not count what other processes do.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self.device, self._now = device, now
        self._marks: list[float | torch.cuda.Event] = []
        synchronize(device)
        self.mark()

    def mark(self) -> None:
        """End a step and begin the next."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(self._now())

    def seconds(self) -> list[float]:
        """Wait for the device and return the seconds of each step."""
        synchronize(self.device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self.device.type == "cuda":
            return [start.elapsed_time(end) / 1e3 for start, end in pairs]  # type: ignore[union-attr]
        return [end - start for start, end in pairs]


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_gflops(dtype: torch.dtype, device: torch.device, now: Callable[[], float] = time.perf_counter) -> float:
    """GFLOP/s of a square matrix product of random values: the median of several, after a warm-up.

    `now` is the clock of `StepClock`.
    """
    size = _MATRIX_SIZE.get(device.type, 512)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    products = _PRODUCTS.get(device.type, 5)
    for _ in range(max(products // 4, 1)):
        torch.mm(left, right)
    clock = StepClock(device, now)
    for _ in range(products):
        torch.mm(left, right)
        clock.mark()
    return 2.0 * size**3 / statistics.median(clock.seconds()) / 1e9


def allocate_workspaces(device: torch.device) -> None:
    """Make the matrix library allocate its workspaces, so that they count for no contender.

    Autograd's backward runs on a thread of its own, which has its own workspace.
    """
    left = torch.randn(64, 64, device=device, requires_grad=True)
    torch.mm(left, left).sum().backward()
    synchronize(device)


def ceiling_gflops(dtype: torch.dtype, device: torch.device) -> float:
    """The rate that MFU refers to: fp32's where this dtype is slower, because our model then computes in fp32."""
    return max(matmul_gflops(one, device) for one in {dtype, torch.float32})


def allocated_bytes(device: torch.device) -> int | None:
    """GPU memory that tensors hold now; None on a CPU, where torch does not count it."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.synchronize(device)
    return torch.cuda.memory_allocated(device)


def allocated_since(before: int | None, device: torch.device) -> int | None:
    """The growth of `allocated_bytes` since it was `before`; None on a CPU."""
    after = allocated_bytes(device)
    return None if before is None or after is None else after - before


class PeakMemory:
    """Rise of allocated GPU memory since the object was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def rise_bytes(self) -> int | None:
        """Bytes by which the peak exceeds the starting value; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) - self._before
