"""Where the device's time of a training step goes: matrix products, attention, our kernels, everything else, idle time.

The columns are those of `benchmarks prediction`, so that a lower MFU than predicted can be traced to one of them.
"""

from __future__ import annotations

import collections
import re
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.batches import Batch
from benchmarks.timing import synchronize
from benchmarks.train.contenders import ThroughputContender

# The first pattern that is found in a kernel's or operator's name, in lower case, decides.
_KINDS = (
    ("attention", r"flash|fmha|attention|softmax"),
    ("products", r"gemm|nvjet|xmma|cublas|splitk|_scaled_mm|::(add|ba?ddb)?b?mm$|::linear"),
    ("update", r"multi_tensor|fused_adam|foreach"),
    ("copies", r"memcpy|memset|::copy_|::zero_|::fill_"),
    ("compiled", r"^triton_"),
    ("our kernels", r"^[a-z0-9_]+_kernel(_\w+)?$"),
)
KINDS = (*(name for name, _ in _KINDS), "others")
_MOST_CALLS = 10
"""Calls that are listed for the host."""
_STEPS = 3


def kind_of(name: str) -> str:
    """Return the kind of work of a kernel on a GPU or an operator on a CPU, by its name."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, name.lower())), "others")


def profile_step(contender: ThroughputContender, batches: Sequence[Batch]) -> dict[str, Any]:
    """Return ms of a step on the device by kind of work, its idle ms, and the number of launches.

    The step's own time is the median of steps without the profiler, which slows the host down. On a GPU also `host`:
    what the host spends a step on, in another step, of which the profiler takes a part itself.
    """
    device = contender.engine.device
    on_gpu = device.type == "cuda"
    step_ms = 1e3 * statistics.median(_step_seconds(contender, batches) for _ in range(_STEPS))
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as recorded:
        _step_seconds(contender, batches)
    ms: collections.Counter[str] = collections.Counter()
    launches = 0
    for event in recorded.key_averages():
        if on_gpu == (event.device_type == DeviceType.CUDA):
            launches += event.count
            ms[kind_of(event.key)] += 1e-3 * (event.self_device_time_total if on_gpu else event.self_cpu_time_total)
    found = {"step_ms": step_ms, "ms": {kind: ms[kind] for kind in KINDS}, "launches": launches}
    return {**found, "host": _on_the_host(contender, batches)} if on_gpu else found


def _on_the_host(contender: ThroughputContender, batches: Sequence[Batch]) -> list[dict[str, Any]]:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        _step_seconds(contender, batches)
    return busiest_calls(recorded.key_averages())


def busiest_calls(events: Iterable[Any], most: int = _MOST_CALLS) -> list[dict[str, Any]]:
    """Return operators and calls of the driver with the most time of the host: name, ms without others, and number."""
    on_host = sorted(
        (one for one in events if one.device_type == DeviceType.CPU), key=lambda one: -one.self_cpu_time_total
    )
    return [
        {"name": one.key, "ms": round(1e-3 * one.self_cpu_time_total, 4), "calls": one.count} for one in on_host[:most]
    ]


def _step_seconds(contender: ThroughputContender, batches: Sequence[Batch]) -> float:
    synchronize(contender.engine.device)
    began = time.perf_counter()
    contender.train_step(batches[0], 0)
    synchronize(contender.engine.device)
    return time.perf_counter() - began


def profile_lines(contenders: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table with the profiles of the contenders that have one; nothing if none has."""
    found = [one for one in contenders if one.get("profile")]
    if not found:
        return []
    lines = [
        "ms of one step on the device, by kind of work; idle: the rest of the step, in which the device waits",
        f"{'dtype':6}{'contender':23}" + "".join(f"{name:>13}" for name in (*KINDS, "idle", "step", "launches")),
    ]
    for one in found:
        times, step_ms = one["profile"]["ms"], one["profile"]["step_ms"]
        cells = [f"{times[kind]:.2f}" for kind in KINDS]
        cells += [f"{max(step_ms - sum(times.values()), 0.0):.2f}", f"{step_ms:.2f}", f"{one['profile']['launches']:,}"]
        lines.append(f"{one['dtype']:6}{one['name']:23}" + "".join(f"{cell:>13}" for cell in cells))
    if any("host" in one["profile"] for one in found):
        lines.append("ms of one step on the host, with the profiler: the calls that take most, and their number")
    for one in found:
        calls = (f"{call['name']} {call['ms']:.1f} ({call['calls']:,})" for call in one["profile"].get("host", ()))
        if text := ", ".join(calls):
            lines.append(f"{one['dtype']:6}{one['name']:23}{text}")
    return lines
