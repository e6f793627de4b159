"""Runs tasks in processes of this machine, in any order, at most `workers` at a time."""

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


class LocalExecutor:
    """A pool of processes, started as they are needed and kept for all stages of a build."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
        )

    def run(
        self,
        function: Callable[[Path, int], None],
        build_dir: Path,
        tasks: Sequence[int],
        finished: Callable[[int], None],
    ) -> None:
        """Run `function(build_dir, task)` for every task, and call `finished(task)` after each.

        Raises:
            ValueError, OSError: what a task raised, or a worker was killed.
        """
        waiting = iter(tasks)
        running: dict[Future[None], int] = {}
        try:
            while True:
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
                f"a worker process was killed, most likely for lack of memory; try fewer than --workers {self.workers}:"
                " the build goes on where it stopped"
            ) from None

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """One thread a worker; an interrupt is the parent's affair; a killed parent takes its workers with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
