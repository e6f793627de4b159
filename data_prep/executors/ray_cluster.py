"""Runs tasks on a Ray cluster, or on a Ray of this machine, through datatrove.

datatrove's own loop starts each rank in a pool of processes within an actor, and a pool waits for ever for a process
that was killed. Here a rank is a Ray task in Ray's worker process itself, whose end Ray reports.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.utils.logging import logger

from data_prep.executors.attempt import Attempt, RunTasks
from data_prep.executors.cluster import ClusterExecutor

MOST_RANKS = 4096
GONE_S = 60.0
_SOURCE_ROOT = Path(__file__).resolve().parent.parent.parent
_DRIVER_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # no cluster by accident after a shutdown
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RayExecutor(ClusterExecutor):
    """A Ray task a rank, at most `workers` at a time."""

    def __init__(self, workers: int, address: str) -> None:
        super().__init__(workers, most_ranks=MOST_RANKS)
        self.address = address

    def __enter__(self) -> RayExecutor:
        os.environ.update(_DRIVER_ENVIRONMENT)
        import ray

        logger.disable("datatrove")
        python_path = os.pathsep.join([str(_SOURCE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        options: dict[str, Any] = {"address": self.address}
        if self.address == "local":
            options |= {"num_cpus": self.workers, "include_dashboard": False}
        try:
            ray.init(
                **options,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": python_path, "TOKENIZERS_PARALLELISM": "false"}},
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(f"--ray_address {self.address}: {str(error).splitlines()[0]}") from None
        return self

    def launch(self, step: RunTasks, ranks: int, attempt: Attempt) -> _RayTasks:
        """Start the ranks of an attempt."""
        return _RayTasks(_Executor(step, ranks, attempt), ranks, self.workers)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        ray.shutdown()
        logger.enable("datatrove")


class _RayTasks:
    """The ranks of an attempt as Ray tasks, a few at a time."""

    def __init__(self, executor: _Executor, ranks: int, workers: int) -> None:
        import ray

        self._waiting = list(reversed(range(ranks)))
        self._workers = workers
        # A killed worker is the driver's affair, which knows the tasks that are missing.
        self._run_rank = ray.remote(num_cpus=1, max_retries=0)(_run_rank)
        self._executor = ray.put(executor)
        self._running: list[Any] = []
        self._faults: list[str] = []

    def ended(self) -> bool:
        """Whether no rank runs or waits."""
        import ray

        while self._waiting and len(self._running) < self._workers:
            self._running.append(self._run_rank.remote(self._executor, self._waiting.pop(), os.getcwd()))
        ready, self._running = ray.wait(self._running, num_returns=len(self._running), timeout=0)
        for reference in ready:
            try:
                ray.get(reference)
            except Exception as error:  # the task's own error is in the attempt's folder, a lost worker is tried again
                self._faults.append(type(error).__name__)
        return not self._running and not self._waiting

    def state(self) -> str:
        """The kinds of error that ranks ended with."""
        return f"Ray: {', '.join(sorted(set(self._faults))) or 'ended, nothing known'}"

    def cancel(self) -> None:
        """Kill the ranks that run.

        Raises:
            OSError: they still run after a minute.
        """
        import ray

        self._waiting.clear()
        for reference in self._running:
            ray.cancel(reference, force=True)
        deadline = time.monotonic() + GONE_S
        while not self.ended():
            if time.monotonic() > deadline:
                raise OSError(f"Ray: {len(self._running)} tasks cancelled, but still there after {GONE_S:.0f} s")
            time.sleep(0.1)


class _Executor(RayPipelineExecutor):
    """datatrove's executor, with the logs of a rank straight in the attempt's folder, which all machines share."""

    def __init__(self, step: RunTasks, ranks: int, attempt: Attempt) -> None:
        super().__init__([step], tasks=ranks, logging_dir=str(attempt.folder))

    _run_for_rank = PipelineExecutor._run_for_rank


def _run_rank(executor: _Executor, rank: int, working_dir: str) -> None:
    """On a node: run the pipeline of a rank, with relative paths meaning what they mean to the driver."""
    os.chdir(working_dir)
    executor._run_for_rank(rank, local_rank=1)
