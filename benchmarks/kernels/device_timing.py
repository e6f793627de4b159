"""Times of short device calls: implementations take turns over many input sets, in CUDA graphs where possible.

A pass calls an implementation once on each input set and keeps the outputs, so that neither inputs nor outputs are in
the cache. Before a pass a large copy clears the cache and keeps the device busy while the host enqueues the pass. On a
CPU a pass is timed with the wall clock.

`triton.testing.do_bench` is not used: it times one implementation on one input set, so other work on the machine
would not affect all implementations alike, and it needs Triton and a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import one_line

_PASS_BYTES = {"cuda": 2e9, "cpu": 1.6e7}
"""Bytes that a pass moves; on a GPU, 30 times the largest cache and half a millisecond of work."""
_MEMORY_SHARE = 1 / 64
"""A pass moves at most this share of a GPU's memory, as implementations also hold what they save for backward."""
_CACHE_MULTIPLE = 4
"""A pass moves at least this many times the L2 cache."""
_MOST_SETS = {"cuda": 128, "cpu": 8}
_COPY_BYTES = {"cuda": 2**31, "cpu": 2**26}
_EVICTING_BYTES = 2**28
_HOST_CALLS = 20
_HOST_REPEATS = 5


@dataclasses.dataclass(frozen=True)
class TimingOptions:
    """How implementations are timed."""

    rounds: int
    """Turns of each implementation."""
    graphs: bool
    """Whether to replay CUDA graphs, where an implementation can be captured."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One implementation of an operation."""

    name: str
    call: Callable[[int], Any]
    """Run on the input set of that index; return the outputs."""
    restore: Callable[[], None] | None = None
    """Called untimed before each pass: restore the input sets that calls overwrite."""


@dataclasses.dataclass
class TimedPass:
    """A warm implementation, the pass to time, and its times."""

    implementation: Implementation
    run: Callable[[], None]
    graph: bool
    graph_obstacle: str | None = None
    """Why no graph is used."""
    seconds: list[float] = dataclasses.field(default_factory=list)
    """Seconds of one call, by round."""

    def figures(self, moved_bytes: int) -> dict[str, Any]:
        """Times of a call and the bandwidth that they give, for JSON."""
        median = statistics.median(self.seconds)
        return {
            "median_us": median * 1e6,
            "lowest_us": min(self.seconds) * 1e6,
            "highest_us": max(self.seconds) * 1e6,
            "gb_s": moved_bytes / median / 1e9,
            "graph": self.graph,
            "graph_obstacle": self.graph_obstacle,
        }


def number_of_sets(bytes_a_call: int, device: torch.device) -> int:
    """Number of input sets for which a pass moves several times the cache."""
    wanted = _PASS_BYTES[device.type]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        wanted = max(min(wanted, properties.total_memory * _MEMORY_SHARE), _CACHE_MULTIPLE * properties.L2_cache_size)
    return min(max(-(-int(wanted) // bytes_a_call), 2), _MOST_SETS[device.type])


@contextlib.contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Use a new stream: the default one cannot be captured, and a backward runs on the stream of its forward."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield


def prepare(implementation: Implementation, sets: int, device: torch.device, graphs: bool) -> TimedPass:
    """Warm an implementation up, which compiles it, and capture its pass if `graphs` is set and capture works."""
    held: list[Any] = [None] * sets

    def run() -> None:
        for index in range(sets):
            held[index] = implementation.call(index)

    for _ in range(2):
        if implementation.restore is not None:
            implementation.restore()
        run()
    if device.type != "cuda" or not graphs:
        obstacle = "not asked for" if device.type == "cuda" else None
        return TimedPass(implementation, run, graph=False, graph_obstacle=obstacle)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(device)):
            run()
        graph.replay()
        torch.cuda.synchronize(device)
    except Exception as error:  # Whatever cannot be captured is timed without a graph.
        run()
        torch.cuda.synchronize(device)
        return TimedPass(implementation, run, graph=False, graph_obstacle=one_line(error))
    return TimedPass(implementation, graph.replay, graph=True)


def take_turns(passes: list[TimedPass], sets: int, rounds: int, device: torch.device) -> None:
    """Time a pass of each in turns, A B C A B C …, and record the seconds of one call."""
    evict = _evictor(device)
    for _ in range(rounds):
        for one in passes:
            if one.implementation.restore is not None:
                one.implementation.restore()
            evict()
            one.seconds.append(_time(one.run, device) / sets)


def host_seconds(implementation: Implementation, sets: int, device: torch.device) -> float:
    """Host time of an eager launch: the median of means over a few consecutive calls."""
    calls = min(sets, _HOST_CALLS)
    seconds = []
    for _ in range(_HOST_REPEATS):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for index in range(calls):
            implementation.call(index)
        seconds.append((time.perf_counter() - started) / calls)
    torch.cuda.synchronize(device)
    return statistics.median(seconds)


def copy_bandwidth(device: torch.device, rounds: int) -> float:
    """GB/s of a large copy on the device, counting bytes read and bytes written."""
    size = _COPY_BYTES[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.get_device_properties(device).total_memory // 16)
    source, target = random_values(size, device), random_values(size, device)
    seconds = []
    for _ in range(rounds):
        target.copy_(source)
        seconds.append(_time(lambda: target.copy_(source), device))
    return 2 * source.nbytes / statistics.median(seconds) / 1e9


def copy_implementation(moved_bytes: int, sets: int, device: torch.device) -> Implementation:
    """Copies that move as many bytes as an operation: the bandwidth that is possible at its size."""
    sources = [random_values(moved_bytes // 2, device) for _ in range(sets)]
    targets = [torch.empty_like(source) for source in sources]
    return Implementation("copy", lambda index: targets[index].copy_(sources[index]))


def random_values(size_bytes: int, device: torch.device) -> Tensor:
    """Normally distributed fp32 values."""
    return torch.randn(max(size_bytes // 4, 1), device=device)


def _time(run: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _evictor(device: torch.device) -> Callable[[], Any]:
    if device.type != "cuda":
        return lambda: None
    source = random_values(_EVICTING_BYTES, device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
