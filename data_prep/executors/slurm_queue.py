"""Slurm's commands: submitting a job array, seeing what became of it, cancelling it. Needs no accounting."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from data_prep.executors.attempt import open_attempts

SCRIPT_NAME = "launch_script.slurm"
COMMANDS = ("sbatch", "squeue", "scancel", "scontrol")
QUEUE_S = 5.0
"""Seconds between two questions to the controller, which answers all users."""
UNREACHABLE_S = 600.0
GONE_S = 90.0
WAITING_S = 60.0
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
_NEVER_STARTS = {
    "AccountNotAllowed", "AssociationTimeLimit", "BadConstraints", "DependencyNeverSatisfied", "InvalidAccount",
    "InvalidQOS", "PartitionNodeLimit", "PartitionTimeLimit", "QOSNotAllowed", "QOSTimeLimit",
    "launch_failed_requeued_held",
}  # fmt: skip


def require_commands() -> None:
    """See that this machine can submit jobs.

    Raises:
        ValueError: it cannot.
    """
    if missing := missing_command():
        raise ValueError(f"--executor slurm: {missing} is not on the PATH; start it where jobs can be submitted")


def missing_command() -> str | None:
    """The first of Slurm's commands that is not here."""
    return next((command for command in COMMANDS if not shutil.which(command)), None)


def job_name(build_dir: Path) -> str:
    """The name of all jobs of a build, by which a later driver finds them."""
    return f"data_prep_{hashlib.sha256(os.fsencode(build_dir.resolve())).hexdigest()[:12]}"


def largest_array() -> int:
    """How many jobs an array may have at this site."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _output("scontrol", "show", "config"), re.MULTILINE)
    return max(int(found[1]) if found else 1001, 1)


def submit(script: Path, arguments: list[str]) -> str:
    """Submit a script; the number of the job.

    Args:
        script: an executable text file.
        arguments: of sbatch, one a list element: no shell reads them.

    Raises:
        OSError: Slurm refused it; says Slurm's reason.
    """
    return _output("sbatch", "--parsable", *arguments, str(script), environment=_environment()).strip().split(";")[0]


def cancel_named(name: str) -> None:
    """Cancel all jobs of a name and wait until they are gone.

    Raises:
        OSError: they still run after a minute and a half, or Slurm does not answer.
    """
    deadline = time.monotonic() + GONE_S
    while numbers := sorted({job for job, state, _ in _rows(name) if state not in _ENDED}):
        if time.monotonic() > deadline:
            raise OSError(f"Slurm job {', '.join(numbers)}: cancelled, but still there after {GONE_S:.0f} s")
        # A job that ended meanwhile is none that scancel could complain about in earnest.
        subprocess.run(["scancel", "--quiet", *numbers], check=False, capture_output=True)
        time.sleep(0.5)


class JobArray:
    """A submitted job array, asked after every few seconds at most."""

    def __init__(self, number: str, name: str) -> None:
        self.number, self.name = number, name
        self._states: Counter[str] = Counter()
        self._asked = self._answered = self._moving = time.monotonic()
        self._said = ""

    def ended(self) -> bool:
        """Whether none of its jobs runs or waits.

        Raises:
            OSError: a job can never start, or Slurm has not answered for ten minutes.
        """
        now = time.monotonic()
        if now < self._asked + QUEUE_S:
            return False
        self._asked = now
        try:
            rows = [(state, reason) for job, state, reason in _rows(self.name) if job == self.number]
        except OSError as error:
            if now > self._answered + UNREACHABLE_S:
                raise OSError(f"Slurm has not answered for {UNREACHABLE_S / 60:.0f} minutes: {error}") from None
            return False
        self._answered = now
        if rows:
            self._states = Counter(state for state, _ in rows)
        open_rows = [(state, reason) for state, reason in rows if state not in _ENDED]
        for state, reason in open_rows:
            if state == "PENDING" and reason in _NEVER_STARTS:
                raise OSError(f"Slurm job {self.number} can never start: {reason}")
        self._tell_waiting(open_rows, now)
        return not open_rows

    def state(self) -> str:
        """How its jobs ended, other than well, as far as Slurm still knows."""
        bad = [f"{count} {state}" for state, count in sorted(self._states.items()) if state in _ENDED - {"COMPLETED"}]
        return f"Slurm job {self.number}: {', '.join(bad) or 'ended, nothing known'}"

    def cancel(self) -> None:
        """Cancel it and wait until it is gone.

        Raises:
            OSError: as `cancel_named`.
        """
        cancel_named(self.name)

    def _tell_waiting(self, rows: list[tuple[str, str]], now: float) -> None:
        """Say on standard error why nothing runs, after a minute and when the reason changes."""
        reasons = sorted({reason for state, reason in rows if state == "PENDING"})
        if len(reasons) == 0 or any(state != "PENDING" for state, _ in rows):
            self._moving = now
        elif now > self._moving + WAITING_S and self._said != (said := ", ".join(reasons)):
            self._said = said
            print(f"Slurm job {self.number} waits: {said}", file=sys.stderr, flush=True)


def _rows(name: str) -> list[tuple[str, str, str]]:
    """(number of the array, state, reason) of all jobs of a name that Slurm still knows."""
    listed = _output("squeue", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%F|%T|%r")
    rows = []
    for line in listed.splitlines():
        number, state, reason = line.strip().split("|", 2)
        rows.append((number, state, reason.strip("()").replace(" ", "_")))
    return rows


def _environment() -> dict[str, str]:
    """This environment without what Slurm set for a job that the driver itself may run in."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "RUN_OFFSET" and (not name.startswith("SLURM_") or name == "SLURM_CONF")
    }


def _output(*command: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise OSError(" ".join(done.stderr.split()) or f"{command[0]} ended with exit status {done.returncode}")
    return done.stdout


def end_leftovers(build_dir: Path) -> None:
    """End the attempts that are open, whichever executor made them; Ray ends the tasks of a lost driver by itself.

    Raises:
        OSError: there are Slurm jobs to end, and Slurm does not answer or is not here.
    """
    attempts = open_attempts(build_dir)
    for attempt in attempts:
        attempt.stop()
    if any((attempt.folder / SCRIPT_NAME).exists() for attempt in attempts):
        if missing := missing_command():
            raise OSError(
                f"{build_dir}: jobs of a build that was killed may still run on Slurm, and {missing} is not on the"
                " PATH; go on where jobs can be cancelled"
            )
        cancel_named(job_name(build_dir))
    for attempt in attempts:
        attempt.close()
