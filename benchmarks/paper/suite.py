"""Run the comparison: every variant and seed once, several at a time; an interrupted suite continues."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.paper.variants import KNOWN, VARIANTS, Scale, Variant, configuration
from bert_pld.checkpoint.format import list_checkpoints
from bert_pld.cluster.stopping import EXIT_PREEMPTED
from bert_pld.config import read_json
from bert_pld.files import CHECKPOINTS, DIVERGED, METRICS, write_atomically
from bert_pld.training.records import read_metrics

POLL_S = 0.2
GIVEN_CONFIG, LOG = "given.json", "log.txt"
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of the comparison."""

    variant: Variant
    seed: int
    run_dir: Path
    config: dict[str, Any]

    @property
    def max_steps(self) -> int:
        """Number of steps of the run."""
        return int(self.config["training"]["max_steps"])

    def is_done(self) -> bool:
        """Whether its last step is evaluated and saved, or it has diverged."""
        if (self.run_dir / DIVERGED).exists():
            return True
        saved = list_checkpoints(self.run_dir / CHECKPOINTS)
        if not saved or saved[0].name != f"step_{self.max_steps:08d}":
            return False
        _, evaluations = read_metrics(self.run_dir / METRICS, newest=1)
        return bool(evaluations) and evaluations[-1]["step"] == self.max_steps


def plan_jobs(scale: Scale, output_dir: Path, seeds: int, names: Iterable[str] | None = None) -> list[Job]:
    """List the runs of variants (default: all of the paper's) seed by seed, so that compared runs are close in time.

    Run folders are `<variant>/seed_<k>` below `output_dir`. `seeds` is the number of seeds of main variants and of
    variants in `names`; other ablations have seed 1 only. Raises ValueError for an unknown name, and if the folder has
    a run with other settings.
    """
    known = {variant.name: variant for variant in KNOWN}
    if unknown := sorted(set(names or ()) - set(known)):
        raise ValueError(f"--variants {unknown[0]}: must be among {', '.join(known)}")
    chosen = [variant for variant in KNOWN if variant.name in set(names)] if names is not None else list(VARIANTS)
    jobs = []
    for seed in range(1, seeds + 1):
        for variant in chosen:
            if seed == 1 or variant.is_main or names is not None:
                run_dir = output_dir / variant.name / f"seed_{seed}"
                jobs.append(Job(variant, seed, run_dir, configuration(variant, scale, seed)))
    for job in jobs:
        given = job.run_dir / GIVEN_CONFIG
        if given.exists() and read_json(given) != job.config:
            raise ValueError(f"{job.run_dir}: was started with other settings; use another --output_dir")
    return jobs


def finished_runs(output_dir: Path) -> dict[str, dict[int, Path]]:
    """Variant → seed → folder of each finished run of a suite.

    A run that was killed at its start may have a folder without a configuration; it is not finished. A folder with
    another name, such as the copy `seed_1_old`, is no run of the suite.
    """
    found: dict[str, dict[int, Path]] = {}
    for variant in KNOWN:
        for given in sorted((output_dir / variant.name).glob(f"seed_*/{GIVEN_CONFIG}")):
            run_dir = given.parent
            number = run_dir.name.removeprefix("seed_")
            if not number.isdecimal():
                continue
            seed = int(number)
            config = read_json(given)
            if Job(variant, seed, run_dir, config).is_done():
                found.setdefault(variant.name, {})[seed] = run_dir
    return found


class Suite:
    """Runs jobs concurrently. A signal is passed on: every run saves a checkpoint, and the same command continues.

    However the suite ends (SIGKILL included, on Linux), its runs save a checkpoint and end too.

    `at_once` runs have `threads` processor threads each. `gpus` are at least as many names of devices, as in
    CUDA_VISIBLE_DEVICES; each run has one to itself. Without `gpus`, runs use the processor. `command` is that of a
    run, without its arguments.
    """

    def __init__(
        self,
        data_dir: Path,
        at_once: int,
        threads: int,
        gpus: list[str] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "bert_pld.pretrain"),
    ) -> None:
        self.data_dir, self.at_once, self.gpus, self.command = data_dir, at_once, gpus, command
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._running: dict[subprocess.Popen[bytes], RunningJob] = {}
        self._stopping = False

    def run(self, jobs: list[Job]) -> list[str]:
        """Run all jobs that are not done, in their order; return a line for each that failed.

        Must be called from the main thread, where signals can be handled. Raises KeyboardInterrupt after a signal, and
        OSError if a run cannot be started; the other runs have saved a checkpoint then.
        """
        waiting = [job for job in jobs if not job.is_done()]
        print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them done, {self.at_once} at a time", flush=True)
        failures: list[str] = []
        queue = iter(waiting)
        before = {number: signal.signal(number, self._stop) for number in _stop_signals()}
        try:
            self._fill(queue)
            while self._running:
                time.sleep(POLL_S)
                failures += self._reap()
                self._fill(queue)
        finally:
            self._stop_runs()
            for process in self._running:
                process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._stopping:
            raise KeyboardInterrupt
        return failures

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        self._stop_runs()

    def _stop_runs(self) -> None:
        for process in self._running:
            process.send_signal(signal.SIGTERM)

    def _fill(self, queue: Iterator[Job]) -> None:
        while not self._stopping and len(self._running) < self.at_once:
            job = next(queue, None)
            if job is None:
                return
            self._start(job)

    def _start(self, job: Job) -> None:
        job.run_dir.mkdir(parents=True, exist_ok=True)
        given, log = job.run_dir / GIVEN_CONFIG, job.run_dir / LOG
        write_atomically(given, json.dumps(job.config, indent=2) + "\n")
        paths = ["--deepspeed_config", given, "--data_dir", self.data_dir, "--output_dir", job.run_dir]
        taken = {started.gpu for started in self._running.values()}
        gpu = next(name for name in self.gpus if name not in taken) if self.gpus else None
        print(f"{job.variant.name}, seed {job.seed}: started", flush=True)
        with open(log, "ab") as output:
            log_start = output.tell()
            process = subprocess.Popen(
                [*self.command, *map(str, paths)],
                env=self.environment if gpu is None else {**self.environment, "CUDA_VISIBLE_DEVICES": gpu},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that a terminal's Ctrl-C reaches runs through this process only
                preexec_fn=_stop_with_parent(),
            )
            self._running[process] = RunningJob(job, gpu, log_start)
        if self._stopping:  # the signal came before this run was in the list
            process.send_signal(signal.SIGTERM)

    def _reap(self) -> list[str]:
        failures = []
        for process, started in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[process]
            job, failure = started.job, failure_of(started, code)
            print(f"{job.variant.name}, seed {job.seed}: {failure or 'done'}", flush=True)
            if failure and not self._stopping:
                failures.append(f"{job.run_dir}: {failure}")
        return failures


def _stop_with_parent() -> Callable[[], None] | None:
    """A `preexec_fn` for `Popen`: the child gets SIGTERM when its parent dies. None on other systems than Linux.

    For the kernel the parent is the thread that forks, so that thread must live as long as the process.
    """
    if _LIBC is None:
        return None
    libc, parent = _LIBC, os.getpid()

    def in_child() -> None:
        # Until the program is loaded the parent's handler is installed, which would ignore the signal.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
        if os.getppid() != parent:  # the parent has died before prctl
            os._exit(128 + signal.SIGTERM)

    return in_child


def _stop_signals() -> list[signal.Signals]:
    """Signals that stop the suite; without SIGHUP where it is ignored, as under `nohup`."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hang_up]


@dataclasses.dataclass(frozen=True)
class RunningJob:
    """A job whose process was started."""

    job: Job
    gpu: str | None
    log_start: int
    """Size of the log when the process was started; earlier attempts wrote that part."""


def failure_of(started: RunningJob, code: int) -> str | None:
    """Why a run that has ended with exit code `code` failed; None if it finished or diverged, which is a result."""
    job, log = started.job, started.job.run_dir / LOG
    if code == 0 and job.is_done():
        return None
    if code == EXIT_PREEMPTED:
        return "stopped; the same command continues it"
    if (job.run_dir / DIVERGED).exists():
        return None
    lines = log.read_bytes()[started.log_start :].decode("utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"exit code {code}; see {log}"
