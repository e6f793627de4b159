"""The driver's loop that the Slurm and the Ray executor share: start jobs, follow them, retry lost tasks."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from data_prep.executors import Task
from data_prep.executors.attempt import Attempt, NotesReader, RunTasks, refresh_folder

SOURCE_ROOT = Path(__file__).resolve().parent.parent.parent
"""Folder that holds `data_prep`; jobs get it in PYTHONPATH."""
MOST_LOSSES = 3
"""The build gives up when the job that runs a task is lost this many times."""
RANKS_PER_WORKER = 4
"""More than one, so that a rank that finishes early makes room for another."""
POLL_S = 0.25


class Jobs(Protocol):
    """The jobs of an attempt."""

    def ended(self) -> bool:
        """Return whether no job runs or waits; raise OSError if a job can never start."""

    def state(self) -> str:
        """Describe the jobs that failed, for an error message."""

    def cancel(self) -> None:
        """Cancel the jobs, and return once they have ended."""


class ClusterExecutor(ABC):
    """Runs tasks through datatrove on machines that share a file system with this one."""

    def __init__(self, workers: int, most_ranks: int) -> None:
        self.workers, self.most_ranks = workers, most_ranks

    @abstractmethod
    def launch(self, step: RunTasks, ranks: int, attempt: Attempt) -> Jobs:
        """Start the jobs of an attempt; raise OSError if the cluster refuses them."""

    def run(self, function: Task, build_dir: Path, tasks: Sequence[int], finished: Callable[[int], None]) -> None:
        """Run the tasks; see `Executor.run`. The other machines must be able to import the module of `function`.

        A task whose job is lost (killed, cancelled, timed out, node failure) runs again, until it has been lost
        `MOST_LOSSES` times. An error or an interrupt cancels all jobs before it is raised.
        """
        done: set[int] = set()
        losses: Counter[int] = Counter()
        attempts_without_progress = 0

        def record(task: int) -> None:
            if task not in done:
                done.add(task)
                finished(task)

        while open_tasks := [task for task in tasks if task not in done]:
            done_before = len(done)
            attempt = Attempt.create(build_dir, function.__name__)
            ranks = min(len(open_tasks), self.workers * RANKS_PER_WORKER, self.most_ranks)
            notes = NotesReader(attempt, ranks)
            jobs = self.launch(RunTasks(function, build_dir, open_tasks, attempt.folder), ranks, attempt)
            _follow(jobs, notes, attempt, record)
            refresh_folder(build_dir / "done")
            lost = [task for task in notes.in_progress if task not in done]
            losses.update(lost)
            attempts_without_progress = 0 if lost or len(done) > done_before else attempts_without_progress + 1
            most_losses = max(losses.values(), default=0)
            if len(done) < len(tasks) and MOST_LOSSES in (attempts_without_progress, most_losses):
                what = f"task {max(losses, key=lambda task: losses[task])}" if losses else "tasks"
                raise OSError(
                    f"{what} of {function.__name__}: the job was lost {MOST_LOSSES} times ({jobs.state()}); see"
                    f" {attempt.folder}; once the cause is fixed, the same command resumes the build"
                )

    def __enter__(self) -> ClusterExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _follow(jobs: Jobs, notes: NotesReader, attempt: Attempt, record: Callable[[int], None]) -> None:
    """Call `record` with every task that is done, until all jobs have ended; an error cancels the jobs."""
    try:
        while True:
            ended = jobs.ended()  # before the notes are read, so that the last notes of an ended job are read too
            for task in notes.newly_done():
                record(task)
            attempt.raise_error()
            if ended:
                attempt.close()
                return
            time.sleep(POLL_S)
    except BaseException:
        attempt.stop()
        jobs.cancel()
        attempt.close()
        raise
