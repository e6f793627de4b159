"""Runs tasks as Slurm job arrays, through datatrove. The driver may run on a login node or in a Slurm job.

Only numbers and shell-quoted paths are written into the job script. Everything else is an argument of `sbatch`, which
no shell interprets. Jobs use the driver's interpreter, environment and working directory.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import dill
from datatrove.executor.base import DistributedEnvVars
from datatrove.executor.slurm import SlurmPipelineExecutor

from data_prep.executors import slurm_queue
from data_prep.executors.attempt import Attempt, RunTasks
from data_prep.executors.cluster import SOURCE_ROOT, ClusterExecutor


class SlurmExecutor(ClusterExecutor):
    """Runs each attempt as a job array, at most `workers` of its jobs at a time, with more arguments for sbatch."""

    def __init__(self, workers: int, sbatch_arguments: Sequence[str] = ()) -> None:
        if missing := slurm_queue.missing_command():
            raise ValueError(
                f"--executor slurm: {missing} is not on the PATH; start the build where jobs can be submitted"
            )
        super().__init__(workers, most_ranks=slurm_queue.largest_array())
        self.sbatch_arguments = sbatch_arguments

    def launch(self, step: RunTasks, ranks: int, attempt: Attempt) -> _ArrayOfRanks:
        """Submit a job array with one job for each rank."""
        name = slurm_queue.job_name(step.build_dir)
        executor = _Executor(step, ranks, self.workers, attempt, name, self.sbatch_arguments)
        try:
            executor.launch_job()
        except BaseException:  # an interrupt may arrive after Slurm has accepted the array and before it answers
            slurm_queue.cancel_named(name)
            raise
        return _ArrayOfRanks(str(executor.job_id), name, attempt, ranks)


class _ArrayOfRanks(slurm_queue.JobArray):
    """A job array that has also ended once every rank has a completion file, which appears before the queue changes."""

    def __init__(self, number: str, name: str, attempt: Attempt, ranks: int) -> None:
        super().__init__(number, name)
        self._completions, self._ranks = attempt.folder / "completions", ranks

    def ended(self) -> bool:
        complete = self._completions.is_dir() and len(os.listdir(self._completions)) == self._ranks
        return complete or super().ended()


class _Executor(SlurmPipelineExecutor):
    """datatrove's executor with its own submission: no extra job for statistics, and only basic options of sbatch."""

    def __init__(
        self, step: RunTasks, ranks: int, workers: int, attempt: Attempt, name: str, more_arguments: Sequence[str]
    ) -> None:
        super().__init__(
            [step], tasks=ranks, workers=workers, time=None, partition=None, job_name=name, qos=None,
            max_array_size=ranks, logging_dir=str(attempt.folder), slurm_logs_folder=str(attempt.folder / "slurm"),
            with_srun=False,
        )  # fmt: skip
        self.folder, self.more_arguments = attempt.folder, more_arguments

    def launch_job(self) -> None:
        """Submit the array and set `job_id` to its number."""
        pickled, script = self.folder / "executor.pik", self.folder / slurm_queue.SCRIPT_NAME
        pickled.write_bytes(dill.dumps(self, fmode=dill.CONTENTS_FMODE))
        (self.folder / "ranks_to_run.json").write_text(json.dumps(list(range(self.tasks))), encoding="utf-8")
        self.save_executor_as_json()
        python_path = os.pathsep.join(filter(None, [str(SOURCE_ROOT), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "datatrove.tools.launch_pickled_pipeline", str(pickled)]
        settings = f"export PYTHONUNBUFFERED=1 PYTHONPATH={shlex.quote(python_path)}"
        script.write_text(f"#!/bin/sh\n{settings}\nexec {shlex.join(command)}\n", encoding="utf-8")
        Path(self.slurm_logs_folder).mkdir()
        arguments = [f"--{key}={value}" if value else f"--{key}" for key, value in self.get_sbatch_args().items()]
        self.job_id = slurm_queue.submit(script, [*arguments, *self.more_arguments])

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, str]:
        """Return the arguments of sbatch for this array, without the user's."""
        # Slurm replaces % in paths: double every one except those of the array's and the task's number.
        log = str(Path(self.slurm_logs_folder) / "%A_%a.out").replace("%", "%%").replace("%%A_%%a", "%A_%a")
        return {
            "job-name": self.job_name, "array": f"0-{self.tasks - 1}%{self.workers}", "ntasks": "1",
            "cpus-per-task": "1", "chdir": os.getcwd(), "export": "ALL", "output": log, "open-mode": "append",
            "requeue": "",
        }  # fmt: skip

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        """Return datatrove's description of the machine without asking Slurm, whose commands a node may lack."""
        return DistributedEnvVars(
            datatrove_node_ips=socket.gethostname(), datatrove_cpus_per_task="1", datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="0", datatrove_executor="SLURM",
        )  # fmt: skip
