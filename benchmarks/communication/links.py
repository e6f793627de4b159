"""Times of single collectives by size, and the latency and bandwidth that fit them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.markdown import table_lines
from benchmarks.timing import synchronize

_SIZES_BYTES = [1 << exponent for exponent in range(10, 27, 2)]


class Links:
    """Times of all-reduce, all-gather and reduce-scatter of fp32 payloads from 1 KiB to 64 MiB."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._times: dict[str, dict[int, list[float]]] = {}

    def turn(self) -> None:
        """Time every kind at every size once; every rank must call it."""
        for size in _SIZES_BYTES:
            for kind, call in _calls(size // 4, dist.get_world_size(), self.device).items():
                call()
                seconds = slowest_rank_seconds(call, self.device, 1 if size > 1 << 22 else 8)
                self._times.setdefault(kind, {}).setdefault(size, []).append(seconds)

    def result(self) -> dict[str, Any]:
        """For each kind, the lower quartile over turns of the slowest rank's time, and the fit.

        The fit is `latency_s` + bytes sent / `bytes_per_s`, by least squares of the relative error.
        """
        ranks, links = dist.get_world_size(), {}
        doubled = {"all_reduce", "reduce_scatter"} if dist.get_backend() == "gloo" else {"all_reduce"}
        for kind, by_size in self._times.items():
            typical = {size: lower_quartile(values) for size, values in by_size.items()}
            sent = {size: size * (ranks - 1) / ranks * (2 if kind in doubled else 1) for size in typical}
            latency, per_byte = _fit(list(sent.values()), list(typical.values()))
            links[kind] = {
                "seconds": {str(size): value for size, value in typical.items()},
                "spread": {str(size): (max(v) - min(v)) / typical[size] for size, v in by_size.items()},
                "latency_s": latency,
                "bytes_per_s": 1.0 / per_byte,
                "fitted_over_measured": {str(s): (latency + sent[s] * per_byte) / typical[s] for s in typical},
            }
        return links


def lower_quartile(values: Sequence[float]) -> float:
    """A typical time on a shared machine: other work only ever adds to times, so low values are the truer ones."""
    return statistics.quantiles(values, n=4, method="inclusive")[0] if len(values) > 1 else values[0]


def report_links(result: dict[str, Any]) -> list[str]:
    """Format a Markdown table, a row for each kind."""
    rows = []
    for kind, one in result["links"].items():
        fits = " ".join(f"{ratio:.2f}" for ratio in one["fitted_over_measured"].values())
        rows.append((kind, f"{one['latency_s'] * 1e6:.0f}", f"{one['bytes_per_s'] / 1e9:.2f}", fits))
    return table_lines(("collective", "latency, µs", "GB/s sent a rank", "fit over measured, 1 KiB … 64 MiB"), rows)


def _calls(elements: int, ranks: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    whole, part = torch.ones(elements, device=device), torch.ones(elements // ranks, device=device)
    usable = whole[: part.numel() * ranks]
    return {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_into_tensor(usable, part),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, usable),
    }


def slowest_rank_seconds(call: Callable[[], Any], device: torch.device, calls: int = 1) -> float:
    """Seconds of a call that all ranks make at once, on the slowest rank; the mean of several calls."""
    dist.barrier()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    elapsed = torch.tensor((time.perf_counter() - started) / calls, dtype=torch.float64, device=device)
    dist.all_reduce(elapsed, op=dist.ReduceOp.MAX)
    return float(elapsed)


def _fit(sizes: list[float], seconds: list[float]) -> tuple[float, float]:
    """Fit (latency, seconds a byte) with the least squared relative error; neither is below 0."""
    weights = 1.0 / torch.tensor(seconds, dtype=torch.float64)
    columns = torch.stack([torch.ones(len(sizes), dtype=torch.float64), torch.tensor(sizes, dtype=torch.float64)], 1)
    latency, per_byte = torch.linalg.lstsq(
        columns * weights[:, None], torch.ones_like(weights)[:, None]
    ).solution.flatten()
    return max(float(latency), 0.0), max(float(per_byte), 1e-15)
