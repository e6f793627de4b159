"""Runs tasks in processes on this machine, in any order, at most `workers` at a time."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from data_prep.executors import Task

GRACE_S = 5.0
"""Seconds that running tasks have to end after an error or an interrupt."""


class LocalExecutor:
    """A pool of processes, which start when they are needed and serve all stages of a build."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._others = set(multiprocessing.active_children())
        self._pool = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
        )

    def run(self, function: Task, build_dir: Path, tasks: Sequence[int], finished: Callable[[int], None]) -> None:
        """Run the tasks; see `Executor.run`. After an error, no task runs any more when it is raised."""
        waiting = iter(tasks)
        running: dict[Future[None], int] = {}
        try:
            while True:
                # Twice as many as workers, so that no worker waits for its next task.
                while len(running) < 2 * self.workers and (task := next(waiting, None)) is not None:
                    running[self._pool.submit(function, build_dir, task)] = task
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    future.result()
                    finished(task)
        except BrokenProcessPool:
            raise OSError(
                "a worker process was killed, probably because the machine ran out of memory; use fewer than"
                f" --workers {self.workers}; the same command resumes the build"
            ) from None
        except BaseException:
            # The caller may remove the build folder, so no task may still write there.
            self._end([future for future in running if not future.cancel()])
            raise

    def _end(self, running: Sequence[Future[None]]) -> None:
        """Wait until the running tasks have ended, and end their processes after `GRACE_S`, or at an interrupt."""
        try:
            if not wait(running, GRACE_S).not_done:
                return
        finally:
            # A task may read a large compressed file for hours. It is safe to kill: its files appear when complete.
            if not all(future.done() for future in running):
                for process in set(multiprocessing.active_children()) - self._others:
                    process.kill()
                wait(running)

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Prepare a worker: one tokenizer thread, interrupts left to the parent, and exit when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
