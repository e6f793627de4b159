"""Times of short device calls: contenders take turns over many input sets, in CUDA graphs where that works.

A pass calls a contender once on each input set and holds what it returns, so that neither inputs nor outputs are found
in the cache. Before a pass a large copy evicts what is there and keeps the device busy while the host enqueues it. On a
CPU a pass is timed by the wall clock.
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

_PASS_BYTES = {"cuda": 2e9, "cpu": 1.6e7}
"""What a pass moves: on a GPU 30 times the cache of the largest, and half a millisecond."""
_MEMORY_SHARE = 1 / 64
"""Of a GPU's memory, at most, that a pass moves: contenders hold what they save for backward besides."""
_CACHES = 4
_MOST_SETS = {"cuda": 128, "cpu": 8}
_COPY_BYTES = {"cuda": 2**31, "cpu": 2**26}
_EVICTING_BYTES = 2**28
_HOST_CALLS = 20
_HOST_REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Contender:
    """One implementation of an operation."""

    name: str
    call: Callable[[int], Any]
    """Runs on the input set of that index; returns its outputs."""
    restore: Callable[[], None] | None = None
    """Untimed, before a pass: input sets that calls overwrite are made again."""


@dataclasses.dataclass
class Prepared:
    """A contender that is warm, with the pass that is timed."""

    contender: Contender
    run: Callable[[], None]
    graph: bool
    graph_obstacle: str | None = None
    """Why there is no graph."""
    seconds: list[float] = dataclasses.field(default_factory=list)
    """A call, in each round."""

    def figures(self, moved_bytes: int) -> dict[str, Any]:
        """JSON-ready times of a call and the bandwidth they give."""
        median = statistics.median(self.seconds)
        return {
            "median_us": median * 1e6,
            "lowest_us": min(self.seconds) * 1e6,
            "highest_us": max(self.seconds) * 1e6,
            "gb_s": moved_bytes / median / 1e9,
            "graph": self.graph,
            "graph_obstacle": self.graph_obstacle,
        }


def input_sets(bytes_a_call: int, device: torch.device) -> int:
    """Input sets to rotate among, so that a pass moves several times what the cache holds."""
    wanted = _PASS_BYTES[device.type]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        wanted = max(min(wanted, properties.total_memory * _MEMORY_SHARE), _CACHES * properties.L2_cache_size)
    return min(max(-(-int(wanted) // bytes_a_call), 2), _MOST_SETS[device.type])


@contextlib.contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A stream other than the default one, which cannot be captured; backwards run where their forward ran."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield


def prepare(contender: Contender, sets: int, device: torch.device, graphs: bool) -> Prepared:
    """Warm a contender up, which compiles it, and capture its pass, where `graphs` and it can be."""
    held: list[Any] = [None] * sets

    def run() -> None:
        for index in range(sets):
            held[index] = contender.call(index)

    for _ in range(2):
        if contender.restore is not None:
            contender.restore()
        run()
    if device.type != "cuda" or not graphs:
        return Prepared(contender, run, graph=False, graph_obstacle="not asked for" if device.type == "cuda" else None)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(device)):
            run()
        graph.replay()
        torch.cuda.synchronize(device)
    except Exception as error:  # Whatever a contender does that cannot be captured: it is timed without.
        run()
        torch.cuda.synchronize(device)
        return Prepared(contender, run, graph=False, graph_obstacle=one_line(error))
    return Prepared(contender, graph.replay, graph=True)


def take_turns(prepared: list[Prepared], sets: int, rounds: int, device: torch.device) -> None:
    """Time a pass of each, A B C A B C …, and note the seconds of one call."""
    evict = _evictor(device)
    for _ in range(rounds):
        for one in prepared:
            if one.contender.restore is not None:
                one.contender.restore()
            evict()
            one.seconds.append(_time(one.run, device) / sets)


def host_seconds(contender: Contender, sets: int, device: torch.device) -> float:
    """What a call costs the host when it is launched eagerly: a median of means over a few calls in a row."""
    calls = min(sets, _HOST_CALLS)
    seconds = []
    for _ in range(_HOST_REPEATS):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for index in range(calls):
            contender.call(index)
        seconds.append((time.perf_counter() - started) / calls)
    torch.cuda.synchronize(device)
    return statistics.median(seconds)


def copy_bandwidth(device: torch.device, rounds: int) -> float:
    """GB/s of a large copy on the device, bytes read and bytes written."""
    size = _COPY_BYTES[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.get_device_properties(device).total_memory // 16)
    source, target = random_values(size, device), random_values(size, device)
    seconds = []
    for _ in range(rounds):
        target.copy_(source)
        seconds.append(_time(lambda: target.copy_(source), device))
    return 2 * source.nbytes / statistics.median(seconds) / 1e9


def copy_contender(moved_bytes: int, sets: int, device: torch.device) -> Contender:
    """Copies that move as many bytes as an operation: what its size leaves of the bandwidth of a large one."""
    sources = [random_values(moved_bytes // 2, device) for _ in range(sets)]
    targets = [torch.empty_like(source) for source in sources]
    return Contender("copy", lambda index: targets[index].copy_(sources[index]))


def random_values(size_bytes: int, device: torch.device) -> Tensor:
    """fp32, normal."""
    return torch.randn(max(size_bytes // 4, 1), device=device)


def one_line(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]


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


def _evictor(device: torch.device) -> Callable[[], None]:
    if device.type != "cuda":
        return lambda: None
    source = random_values(_EVICTING_BYTES, device)
    target = torch.empty_like(source)

    def evict() -> None:
        target.copy_(source)

    return evict
