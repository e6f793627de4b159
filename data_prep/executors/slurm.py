"""Runs tasks as Slurm job arrays, through datatrove. The driver may run on a login node or in a job of its own.

Only numbers, and paths quoted for the shell, get into the job script; everything else is an argument of `sbatch`, which
no shell reads. Jobs use this process's interpreter, environment and working directory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import socket
import sys
from pathlib import Path

import dill
from datatrove.executor.base import DistributedEnvVars
from datatrove.executor.slurm import SlurmPipelineExecutor

from data_prep.executors import slurm_queue
from data_prep.executors.attempt import Attempt, RunTasks
from data_prep.executors.cluster import ClusterExecutor

SOURCE_ROOT = Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """What jobs ask for; None leaves it to the site."""

    partition: str | None = None
    time: str | None = None
    """Of one job, as sbatch takes it."""
    memory_gb: float | None = None
    sbatch_arguments: tuple[str, ...] = ()
    """Further ones, each `--key` or `--key=value`."""


class SlurmExecutor(ClusterExecutor):
    """A job array an attempt, at most `workers` of its jobs at a time."""

    def __init__(self, workers: int, options: SlurmOptions) -> None:
        slurm_queue.require_commands()
        super().__init__(workers, most_ranks=slurm_queue.largest_array())
        self.options = options

    def launch(self, step: RunTasks, ranks: int, attempt: Attempt) -> _ArrayOfRanks:
        """Submit a job array with a rank a job.

        Raises:
            OSError: Slurm refused it.
        """
        name = slurm_queue.job_name(step.build_dir)
        executor = _Executor(step, ranks, self.workers, attempt, name, self.options)
        try:
            executor.launch_job()
        except BaseException:  # an interrupt may have come between Slurm's taking the job and its answer
            slurm_queue.cancel_named(name)
            raise
        return _ArrayOfRanks(str(executor.job_id), name, attempt, ranks)


class _ArrayOfRanks(slurm_queue.JobArray):
    """Has also ended when all ranks say so, which is seen earlier than in the queue."""

    def __init__(self, number: str, name: str, attempt: Attempt, ranks: int) -> None:
        super().__init__(number, name)
        self._completions, self._ranks = attempt.folder / "completions", ranks

    def ended(self) -> bool:
        complete = self._completions.is_dir() and len(os.listdir(self._completions)) == self._ranks
        return complete or super().ended()


class _Executor(SlurmPipelineExecutor):
    """datatrove's executor, submitting by itself: no job to merge statistics, and only what every Slurm knows."""

    def __init__(
        self, step: RunTasks, ranks: int, workers: int, attempt: Attempt, name: str, options: SlurmOptions
    ) -> None:
        super().__init__(
            [step],
            tasks=ranks,
            workers=workers,
            time=options.time,
            partition=options.partition,
            job_name=name,
            qos=None,
            max_array_size=ranks,
            logging_dir=str(attempt.folder),
            slurm_logs_folder=str(attempt.folder / "slurm"),
            with_srun=False,
        )
        self.folder, self.options = attempt.folder, options

    def launch_job(self) -> None:
        """Submit the array; `job_id` is its number.

        Raises:
            OSError: Slurm refused it.
        """
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
        self.job_id = slurm_queue.submit(script, [*arguments, *self.options.sbatch_arguments])

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, str]:
        """The arguments of sbatch for this array, without those of the user's own."""
        log = str(Path(self.slurm_logs_folder) / "%A_%a.out").replace("%", "%%").replace("%%A_%%a", "%A_%a")
        optional = {
            "partition": self.partition,
            "time": self.time,
            "mem": f"{round(1024 * self.options.memory_gb)}M" if self.options.memory_gb else None,
        }
        return {
            "job-name": self.job_name,
            "array": f"0-{self.tasks - 1}%{self.workers}",
            "ntasks": "1",
            "cpus-per-task": "1",
            "chdir": os.getcwd(),
            "export": "ALL",
            "output": log,
            "open-mode": "append",
            "requeue": "",
            **{key: value for key, value in optional.items() if value},
        }

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        """What datatrove tells its steps of the machine; Slurm's commands need not be on it."""
        return DistributedEnvVars(
            datatrove_node_ips=socket.gethostname(),
            datatrove_cpus_per_task="1",
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="0",
            datatrove_executor="SLURM",
        )
