"""Host memory as Linux counts it, and work in a separate process, whose memory is its own.

psutil reports the present size only. The peak (VmHWM) includes memory that is allocated and freed between two samples.
It can be reset, so that it covers one piece of work.
"""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

PROC = Path("/proc")
_RESET_PEAK = "5"
"""Written to `clear_refs`, this resets VmHWM to the present size."""


def resident_bytes(process: int | str = "self") -> tuple[int, int]:
    """Resident memory of a process: (now, at its peak); raises OSError if it has ended."""
    lines = (PROC / str(process) / "status").read_text().splitlines()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    now, peak = (int(fields[name][0]) * 1024 if name in fields else 0 for name in ("VmRSS", "VmHWM"))
    return now, peak


class HostMemory:
    """Growth of this process since the object was made."""

    def __init__(self) -> None:
        gc.collect()
        (PROC / "self" / "clear_refs").write_text(_RESET_PEAK)
        self._before, _ = resident_bytes()

    def figures(self) -> dict[str, int]:
        """Bytes: `resident` is the growth of the process; `rise` is how far its peak was above that."""
        gc.collect()
        now, peak = resident_bytes()
        return {"resident": now - self._before, "rise": peak - now}


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run `work(*arguments)` in a new process with the same outcome; raise RuntimeError if the process was killed."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool as error:
            raise RuntimeError(f"{work.__name__}{arguments}: its process was killed; out of memory?") from error
