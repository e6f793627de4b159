"""A command run as a process of its own, with the time it took and the memory that it and its children held."""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_SECONDS_BETWEEN_LOOKS = 0.02
_PROC = Path("/proc")


@dataclasses.dataclass(frozen=True)
class Watched:
    """What was seen of a finished command."""

    seconds: float
    processor_seconds: float
    """Of the command and its children, in all threads; what else the machine does hardly changes it."""
    peak_process_bytes: int
    """Resident memory of its largest process at its highest."""
    peak_total_bytes: int
    """Resident memory of all its processes at the look that saw most; memory they share counts for each."""
    output: str


def run_watched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Watched:
    """Run a command to its end.

    Raises:
        ValueError: it failed; with the last line of what it printed to stderr.
    """
    start, used = time.perf_counter(), _processor_seconds_of_children()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    memory = _Memory(process.pid)
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
    return Watched(seconds, used, memory.of_one, memory.of_all, output)


def _processor_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class _Memory:
    """Highest resident memory of a process and its descendants; reads Linux's /proc."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.of_one = self.of_all = 0
        self.finished = threading.Event()

    def watch(self) -> None:
        while not self.finished.wait(_SECONDS_BETWEEN_LOOKS):
            sizes = [_memory_bytes(pid) for pid in _descendants(self.root)]
            self.of_one = max([self.of_one, *(highest for _, highest in sizes)])
            self.of_all = max(self.of_all, sum(now for now, _ in sizes))


def _descendants(root: int) -> list[int]:
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        try:
            for thread in (_PROC / str(pid) / "task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
        except OSError:
            continue  # it has just ended
    return found


def _memory_bytes(pid: int) -> tuple[int, int]:
    """Resident now, and at the highest so far."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0, 0
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return tuple(int(fields[name][0]) * 1024 if name in fields else 0 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
