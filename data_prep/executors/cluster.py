"""What the executors for other machines have in common: the driver's loop, and trying again what was lost."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from data_prep.executors.attempt import Attempt, Notes, RunTasks, Task, look_again

MOST_LOSSES = 3
"""So often a task's job may be lost under it before the build gives up."""
RANKS_PER_WORKER = 4
"""Several, so that ranks that end early leave room for others."""
POLL_S = 0.25


class Jobs(Protocol):
    """The jobs of an attempt, on their way."""

    def ended(self) -> bool:
        """Whether none of them runs or will run any more.

        Raises:
            OSError: they can never begin.
        """

    def state(self) -> str:
        """How those ended that did not end well, for a message."""

    def cancel(self) -> None:
        """End them, and return when they are gone."""


class ClusterExecutor(ABC):
    """Runs tasks through datatrove on machines that share a file system with this one."""

    def __init__(self, workers: int, most_ranks: int) -> None:
        self.workers, self.most_ranks = workers, most_ranks

    @abstractmethod
    def launch(self, step: RunTasks, ranks: int, attempt: Attempt) -> Jobs:
        """Start the jobs of an attempt.

        Raises:
            OSError: they were not accepted.
        """

    def run(self, function: Task, build_dir: Path, tasks: Sequence[int], finished: Callable[[int], None]) -> None:
        """Run `function(build_dir, task)` for every task, and call `finished(task)` after each.

        Tasks whose job was lost (killed, cancelled, out of time, its machine gone) are run again, each at most
        `MOST_LOSSES` times. Whatever ends this early, an interrupt included, ends the jobs first.

        Args:
            function: of a module that the other machines can import.
            build_dir: on a file system that they share.
            tasks: their numbers.
            finished: told about each task once.

        Raises:
            ValueError, OSError: what a task raised, or jobs were refused or lost too often.
        """
        done: set[int] = set()
        losses: Counter[int] = Counter()
        barren = 0
        while open_tasks := [task for task in tasks if task not in done]:
            before = len(done)
            attempt = Attempt.begun(build_dir, function.__name__)
            notes, jobs = self._follow(function, build_dir, open_tasks, attempt, done, finished)
            look_again(build_dir / "done")
            lost = [task for task in notes.in_progress if task not in done]
            losses.update(lost)
            barren = 0 if lost or len(done) > before else barren + 1
            if len(done) < len(tasks) and MOST_LOSSES in (barren, max(losses.values(), default=0)):
                what = f"task {max(losses, key=lambda task: losses[task])}" if losses else "tasks"
                raise OSError(
                    f"{what} of {function.__name__}: the job was lost {MOST_LOSSES} times ({jobs.state()}); see"
                    f" {attempt.folder}; with the cause removed, the same command goes on where this one stopped"
                )

    def _follow(
        self,
        function: Task,
        build_dir: Path,
        open_tasks: list[int],
        attempt: Attempt,
        done: set[int],
        finished: Callable[[int], None],
    ) -> tuple[Notes, Jobs]:
        """Run an attempt until its jobs have ended, adding to `done`."""
        ranks = min(len(open_tasks), self.workers * RANKS_PER_WORKER, self.most_ranks)
        notes = Notes(attempt, ranks)
        jobs = self.launch(RunTasks(function, build_dir, open_tasks, attempt.folder), ranks, attempt)
        try:
            while True:
                ended = jobs.ended()  # asked first: what a job noted before it ended is seen below
                for task in notes.newly_done():
                    if task not in done:
                        done.add(task)
                        finished(task)
                attempt.raise_error()
                if ended:
                    attempt.close()
                    return notes, jobs
                time.sleep(POLL_S)
        except BaseException:
            attempt.stop()
            jobs.cancel()
            attempt.close()
            raise

    def __enter__(self) -> ClusterExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
