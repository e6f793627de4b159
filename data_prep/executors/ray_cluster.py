"""Runs tasks on a Ray cluster, or on a Ray that is started on this machine, through datatrove.

datatrove's own loop runs each rank in a process pool within a Ray actor. Such a pool waits forever for a process that
was killed. Here each rank is a Ray task. It runs in Ray's own worker process, and Ray reports when that process ends.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.utils.logging import logger

from data_prep.executors.attempt import Attempt, RunTasks
from data_prep.executors.cluster import SOURCE_ROOT, ClusterExecutor

MOST_RANKS = 4096
CANCEL_TIMEOUT_S = 60.0
_DRIVER_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call after the shutdown must not start another cluster
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RayExecutor(ClusterExecutor):
    """Runs each rank as a Ray task, at most `workers` at a time."""

    def __init__(self, workers: int, address: str) -> None:
        super().__init__(workers, most_ranks=MOST_RANKS)
        self.address = address

    def __enter__(self) -> RayExecutor:
        os.environ.update(_DRIVER_ENVIRONMENT)
        import ray

        logger.disable("datatrove")
        python_path = os.pathsep.join(filter(None, [str(SOURCE_ROOT), os.environ.get("PYTHONPATH")]))
        environment = {"env_vars": {"PYTHONPATH": python_path, "TOKENIZERS_PARALLELISM": "false"}}
        options: dict[str, Any] = {"address": self.address, "runtime_env": environment}
        if self.address == "local":
            options |= {"num_cpus": self.workers, "include_dashboard": False}
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(f"--ray_address {self.address}: {str(error).splitlines()[0]}") from None
        return self

    def launch(self, step: RunTasks, ranks: int, attempt: Attempt) -> _RayTasks:
        """Start the ranks of an attempt."""
        return _RayTasks(_Executor(step, ranks, attempt), ranks, self.workers)

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()
        logger.enable("datatrove")


class _RayTasks:
    """The ranks of an attempt as Ray tasks, at most `workers` at a time."""

    def __init__(self, executor: _Executor, ranks: int, workers: int) -> None:
        import ray

        self._waiting = list(reversed(range(ranks)))
        self._workers = workers
        # No retries by Ray: the driver knows which tasks are missing and starts another attempt with them.
        self._run_rank = ray.remote(num_cpus=1, max_retries=0)(_run_rank)
        self._executor = ray.put(executor)
        self._running: list[Any] = []
        self._errors: list[str] = []

    def ended(self) -> bool:
        """Start waiting ranks where there is room, and return whether no rank runs or waits."""
        import ray

        while self._waiting and len(self._running) < self._workers:
            self._running.append(self._run_rank.remote(self._executor, self._waiting.pop(), os.getcwd()))
        ready, self._running = ray.wait(self._running, num_returns=len(self._running), timeout=0)
        for reference in ready:
            try:
                ray.get(reference)
            except Exception as error:  # the attempt's folder has the error of a task; a lost worker is retried
                self._errors.append(type(error).__name__)
        return not self._running and not self._waiting

    def state(self) -> str:
        return f"Ray: {', '.join(sorted(set(self._errors))) or 'ended without an error'}"

    def cancel(self) -> None:
        """Kill the running ranks; raise OSError if one still runs after a minute."""
        import ray

        self._waiting.clear()
        for reference in self._running:
            ray.cancel(reference, force=True)
        deadline = time.monotonic() + CANCEL_TIMEOUT_S
        while not self.ended():
            if time.monotonic() > deadline:
                raise OSError(f"Ray: {len(self._running)} tasks still run {CANCEL_TIMEOUT_S:.0f} s after cancelling")
            time.sleep(0.1)


class _Executor(RayPipelineExecutor):
    """datatrove's executor; a rank logs directly to the attempt's folder, which all machines share."""

    def __init__(self, step: RunTasks, ranks: int, attempt: Attempt) -> None:
        super().__init__([step], tasks=ranks, logging_dir=str(attempt.folder))

    _run_for_rank = PipelineExecutor._run_for_rank


def _run_rank(executor: _Executor, rank: int, working_dir: str) -> None:
    """Run the pipeline of a rank on a node, in the driver's working directory so that relative paths agree."""
    os.chdir(working_dir)
    executor._run_for_rank(rank, local_rank=1)
