"""Clocks, memory and the matrix-product ceiling of `bench train` and `bench quality`."""

from __future__ import annotations

import gc
import statistics
import time

import torch

_MATRIX_SIZE = {"cuda": 8192, "cpu": 512}
_PRODUCTS = {"cuda": 20, "cpu": 5}


class StepClock:
    """The time of each of several steps, without waiting for the device between them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[float | torch.cuda.Event] = []
        synchronize(device)
        self.mark()

    def mark(self) -> None:
        """A step ends here, and the next begins."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds of each step, once the device has done its work."""
        synchronize(self.device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self.device.type == "cuda":
            return [start.elapsed_time(end) / 1e3 for start, end in pairs]  # type: ignore[union-attr]
        return [end - start for start, end in pairs]


def synchronize(device: torch.device) -> None:
    """Wait for the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_gflops(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of a square matrix product of random data, warmed up, the median of several."""
    size = _MATRIX_SIZE.get(device.type, 512)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    products = _PRODUCTS.get(device.type, 5)
    for _ in range(max(products // 4, 1)):
        torch.mm(left, right)
    clock = StepClock(device)
    for _ in range(products):
        torch.mm(left, right)
        clock.mark()
    return 2.0 * size**3 / statistics.median(clock.seconds()) / 1e9


def take_workspaces(device: torch.device) -> None:
    """Have the matrix library take its workspaces, for the backward's thread too, so that they are on nobody's bill."""
    left = torch.randn(64, 64, device=device, requires_grad=True)
    torch.mm(left, left).sum().backward()
    synchronize(device)


def ceiling_gflops(dtype: torch.dtype, device: torch.device) -> float:
    """What MFU is measured against: fp32's product where this dtype's is slower, since ours widens it then."""
    return max(matmul_gflops(one, device) for one in {dtype, torch.float32})


def allocated_bytes(device: torch.device) -> int | None:
    """Bytes of GPU memory that tensors hold now; None on a CPU, where nobody counts them."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.synchronize(device)
    return torch.cuda.memory_allocated(device)


class PeakMemory:
    """How far allocated memory rises over what it was when this was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def rise_bytes(self) -> int | None:
        """Bytes at the highest point since; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) - self._before
