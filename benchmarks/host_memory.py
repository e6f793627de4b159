"""Memory of a piece of work as the operating system counts it: in a process of its own, over what was there before."""

from __future__ import annotations

import argparse
import concurrent.futures
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

_PROC = Path("/proc/self")
_RESET_PEAK = "5"
"""What, written to `clear_refs`, makes Linux count the highest resident size anew."""


class HostMemory:
    """How far this process grows from now on."""

    def __init__(self) -> None:
        gc.collect()
        (_PROC / "clear_refs").write_text(_RESET_PEAK)
        self._before, _ = _resident()

    def figures(self) -> dict[str, int]:
        """Bytes: `resident`, grown by until now, and `rise`, how far above that it has been in between."""
        gc.collect()
        now, highest = _resident()
        return {"resident": now - self._before, "rise": highest - now}


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """`work(*arguments)` in a new process; what it returns or raises comes back.

    An options namespace among the arguments goes without what no process can be handed.

    Raises:
        RuntimeError: the process was killed.
    """
    handed = [_without_module(one) if isinstance(one, argparse.Namespace) else one for one in arguments]
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, *handed).result()
        except BrokenProcessPool as error:
            raise RuntimeError(f"{work.__name__}{tuple(handed)}: its process was killed; out of memory?") from error


def _without_module(options: argparse.Namespace) -> argparse.Namespace:
    return argparse.Namespace(**{key: value for key, value in vars(options).items() if key != "module"})


def _resident() -> tuple[int, int]:
    """Bytes resident now, and at the highest."""
    lines = (_PROC / "status").read_text().splitlines()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return int(fields["VmRSS"][0]) * 1024, int(fields["VmHWM"][0]) * 1024
