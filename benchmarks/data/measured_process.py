"""Run a command and measure its time, and the memory of it and its descendants."""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence

from benchmarks.host_memory import PROC, resident_bytes

_SAMPLING_INTERVAL_S = 0.02


@dataclasses.dataclass(frozen=True)
class FinishedCommand:
    """Measurements of a finished command."""

    seconds: float
    processor_seconds: float
    """Processor time of the command and its descendants, all threads; other work on the machine hardly changes it."""
    peak_process_bytes: int
    """Peak resident memory of its largest process."""
    peak_total_bytes: int
    """Largest sample of the resident memory of all its processes; shared memory counts for each of them."""
    output: str


def run_measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> FinishedCommand:
    """Run a command to its end; raise ValueError with the last line of its stderr if it fails."""
    start, used = time.perf_counter(), _processor_seconds_of_children()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    memory = _MemorySampler(process.pid)
    watcher = threading.Thread(target=memory.watch, daemon=True)
    watcher.start()
    output, errors = process.communicate()
    seconds = time.perf_counter() - start
    memory.finished.set()
    watcher.join()
    if process.returncode:
        last = errors.strip().splitlines()[-1] if errors.strip() else f"exit status {process.returncode}"
        raise ValueError(f"{' '.join(command[:6])} …: {last.removeprefix('error: ')}")
    used = _processor_seconds_of_children() - used
    return FinishedCommand(seconds, used, memory.of_one, memory.of_all, output)


def _processor_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class _MemorySampler:
    """Peak resident memory of a process and its descendants, sampled from Linux's /proc.

    psutil would read every process of the machine to find the descendants, fifty times a second beside a measurement.
    """

    def __init__(self, root: int) -> None:
        self.root = root
        self.of_one = self.of_all = 0
        self.finished = threading.Event()

    def watch(self) -> None:
        while not self.finished.wait(_SAMPLING_INTERVAL_S):
            sizes = [_memory_bytes(pid) for pid in _descendants(self.root)]
            self.of_one = max([self.of_one, *(highest for _, highest in sizes)])
            self.of_all = max(self.of_all, sum(now for now, _ in sizes))


def _descendants(root: int) -> list[int]:
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        try:
            for thread in (PROC / str(pid) / "task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
        except OSError:
            continue  # the process has just ended
    return found


def _memory_bytes(pid: int) -> tuple[int, int]:
    """Resident memory: (now, at its peak); zeros for a process that has ended."""
    try:
        return resident_bytes(pid)
    except OSError:
        return 0, 0
