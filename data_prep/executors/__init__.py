"""Where the tasks of a build run: on this machine, in Slurm job arrays, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

Task = Callable[[Path, int], None]
"""Runs one task of a build, given the build folder and the task's number."""


class Executor(Protocol):
    """Runs tasks in any order, many at a time."""

    def run(self, function: Task, build_dir: Path, tasks: Sequence[int], finished: Callable[[int], None]) -> None:
        """Run `function(build_dir, task)` for every task, and call `finished(task)` once after each.

        ValueError and OSError of a task are raised again; a lost worker is an OSError.
        """
