"""The command-line flags that choose and configure an executor, and the executor that they ask for."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from data_prep.executors.local import LocalExecutor

if TYPE_CHECKING:
    from data_prep.executors.cluster import ClusterExecutor

EXECUTORS = ("local", "slurm", "ray")
MOST_WORKERS = 4096
_SLURM_TIME = re.compile(r"(\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+|\d+-\d+:\d\d|\d+-\d+:\d\d:\d\d)")
_SLURM_NAME = re.compile(r"[A-Za-z0-9_.,-]+")
_SLURM_KEY = re.compile(r"[a-z][a-z0-9-]*")
_SET_BY_BUILD = {
    "array", "chdir", "cpus-per-task", "error", "export", "help", "input", "job-name", "mem", "ntasks", "open-mode",
    "output", "parsable", "partition", "requeue", "test-only", "time", "usage", "version", "wait", "wrap",
}  # fmt: skip
_RAY_ADDRESS = re.compile(r"auto|local|[A-Za-z0-9_.\[\]:-]+:\d+")


@dataclasses.dataclass(frozen=True)
class ExecutorOptions:
    """The choice of an executor and its options, checked."""

    executor: str = "local"
    workers: int = 1
    slurm_partition: str | None = None
    slurm_time: str | None = None
    slurm_memory_gb: float | None = None
    slurm_args: tuple[str, ...] = ()
    """Additional options of sbatch, each `key` or `key=value`."""
    ray_address: str | None = None
    """None stands for `local`."""

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ValueError(f"--executor {self.executor}: not available; allowed: {', '.join(EXECUTORS)}")
        if not 1 <= self.workers <= MOST_WORKERS:
            raise ValueError(f"--workers {self.workers}: must be between 1 and {MOST_WORKERS}")
        for field in dataclasses.fields(self):
            owner, is_given = field.name.split("_")[0], getattr(self, field.name) != field.default
            if owner in ("slurm", "ray") and is_given and owner != self.executor:
                raise ValueError(f"--{field.name}: requires --executor {owner}, not {self.executor}")
        if self.slurm_partition is not None and not _SLURM_NAME.fullmatch(self.slurm_partition):
            raise ValueError(f"--slurm_partition {self.slurm_partition!r}: allowed are letters, digits and . , _ -")
        if self.slurm_time is not None and not _SLURM_TIME.fullmatch(self.slurm_time):
            raise ValueError(f"--slurm_time {self.slurm_time!r}: must be MINUTES, HH:MM:SS or DAYS-HH:MM:SS")
        if self.slurm_memory_gb is not None and not 0.0625 <= self.slurm_memory_gb <= 65536:
            raise ValueError(f"--slurm_memory_gb {self.slurm_memory_gb}: must be between 0.0625 and 65536")
        for argument in self.slurm_args:
            key = argument.partition("=")[0]
            if not _SLURM_KEY.fullmatch(key):
                what = "must be key=value or key, a long option of sbatch without the leading --"
                raise ValueError(f"--slurm_args {argument!r}: {what}")
            if key in _SET_BY_BUILD:
                raise ValueError(f"--slurm_args {argument!r}: the build sets {key} itself, or has another flag for it")
            if not argument.isprintable():
                raise ValueError(f"--slurm_args {argument!r}: contains a character that cannot be printed")
        if self.ray_address is not None and not _RAY_ADDRESS.fullmatch(self.ray_address):
            raise ValueError(f"--ray_address {self.ray_address!r}: must be auto, local or HOST:PORT")

    @classmethod
    def from_flags(cls, arguments: argparse.Namespace) -> ExecutorOptions:
        """Take the options from parsed flags; raise ValueError for a wrong value or a flag of another executor."""
        values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)}
        return cls(**{**values, "slurm_args": tuple(values["slurm_args"])})


def add_executor_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `ExecutorOptions.from_flags` reads."""
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)),
        help="most processes or jobs at a time; does not change the result (default: CPUs of this machine)",
    )  # fmt: skip
    parser.add_argument(
        "--executor", default=EXECUTORS[0], metavar="|".join(EXECUTORS), help="where tasks run (default: local)"
    )
    parser.add_argument("--slurm_partition", metavar="P", help="Slurm partition (default: the site's)")
    parser.add_argument("--slurm_time", metavar="12:00:00", help="time limit of one job (default: the site's)")
    parser.add_argument("--slurm_memory_gb", type=float, metavar="GB", help="memory of one job (default: the site's)")
    parser.add_argument(
        "--slurm_args", nargs="+", default=(), metavar="KEY=VALUE", help="more options of sbatch: account=a qos=long"
    )
    parser.add_argument(
        "--ray_address", metavar="auto|local|HOST:PORT", help="Ray cluster (default: local, a Ray on this machine)"
    )


@contextmanager
def make_executor(options: ExecutorOptions) -> Iterator[LocalExecutor | ClusterExecutor]:
    """Open the executor. One with jobs on other machines cancels them on SIGTERM and SIGUSR1 as well as on SIGINT."""
    if options.executor == "local":
        with LocalExecutor(options.workers) as local:
            yield local
        return
    with _signals_as_interrupts(), _cluster_executor(options) as cluster:
        yield cluster


def _cluster_executor(options: ExecutorOptions) -> ClusterExecutor:
    # Imported here because datatrove's executors take a second to import, and ray may not be installed.
    if options.executor == "ray":
        from data_prep.executors.ray_cluster import RayExecutor

        return RayExecutor(options.workers, options.ray_address or "local")
    from data_prep.executors.slurm import SlurmExecutor

    memory = f"{round(1024 * options.slurm_memory_gb)}M" if options.slurm_memory_gb else None
    given = {"partition": options.slurm_partition, "time": options.slurm_time, "mem": memory}
    arguments = [f"--{key}={value}" for key, value in given.items() if value]
    return SlurmExecutor(options.workers, arguments + [f"--{argument}" for argument in options.slurm_args])


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
