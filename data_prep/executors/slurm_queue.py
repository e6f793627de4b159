"""Slurm's commands: submit a job array, follow its state, cancel it. No Slurm accounting is needed."""

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
"""Shortest time in seconds between two queries; the controller serves all users of the cluster."""
UNREACHABLE_S = 600.0
CANCEL_TIMEOUT_S = 90.0
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


def missing_command() -> str | None:
    """Return the first of Slurm's commands that is not on the PATH."""
    return next((command for command in COMMANDS if not shutil.which(command)), None)


def job_name(build_dir: Path) -> str:
    """Return the name of all jobs of a build; a later driver finds the jobs by it."""
    return f"data_prep_{hashlib.sha256(os.fsencode(build_dir.resolve())).hexdigest()[:12]}"


def largest_array() -> int:
    """Return the largest number of jobs in an array at this site."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _output("scontrol", "show", "config"), re.MULTILINE)
    return max(int(found[1]) if found else 1001, 1)


def submit(script: Path, arguments: list[str]) -> str:
    """Submit a script and return the number of the job; an OSError has Slurm's message if it refuses the job."""
    # The driver may itself run in a job: without the variables that Slurm sets there.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "RUN_OFFSET" and (not name.startswith("SLURM_") or name == "SLURM_CONF")
    }
    return _output("sbatch", "--parsable", *arguments, str(script), environment=environment).strip().split(";")[0]


def cancel_named(name: str) -> None:
    """Cancel all jobs with a name and wait for their end; raise OSError if jobs still run after 90 seconds."""
    deadline = time.monotonic() + CANCEL_TIMEOUT_S
    while numbers := sorted({job for job, state, _ in _rows(name) if state not in _ENDED}):
        if time.monotonic() > deadline:
            raise OSError(f"Slurm job {', '.join(numbers)}: still running {CANCEL_TIMEOUT_S:.0f} s after scancel")
        # scancel fails for a job that has ended meanwhile, which is no error here.
        subprocess.run(["scancel", "--quiet", *numbers], check=False, capture_output=True)
        time.sleep(0.5)


def stop_orphaned_jobs(build_dir: Path) -> None:
    """Cancel the jobs that a killed driver left running, whichever executor started them.

    A resumed build with the same plan could ignore such jobs: files appear complete and with the same bytes. A build
    with another plan could not, because its tasks with the same numbers are different tasks. Ray ends the tasks of a
    lost driver by itself. If Slurm jobs must be cancelled and Slurm is not on the PATH or does not answer, that is an
    OSError.
    """
    attempts = open_attempts(build_dir)
    for attempt in attempts:
        attempt.stop()
    if any((attempt.folder / SCRIPT_NAME).exists() for attempt in attempts):
        if missing := missing_command():
            raise OSError(
                f"{build_dir}: Slurm jobs of a killed build may still be running, and {missing} is not on the PATH;"
                " resume the build on a machine where jobs can be cancelled"
            )
        cancel_named(job_name(build_dir))
    for attempt in attempts:
        attempt.close()


class JobArray:
    """A submitted job array, whose state is queried every few seconds at most."""

    def __init__(self, number: str, name: str) -> None:
        self.number, self.name = number, name
        self._states: Counter[str] = Counter()
        self._last_query = self._last_answer = self._last_running = time.monotonic()
        self._shown_reason = ""

    def ended(self) -> bool:
        """Return whether no job runs or waits; raise OSError if one can never start or Slurm does not answer."""
        now = time.monotonic()
        if now < self._last_query + QUEUE_S:
            return False
        self._last_query = now
        try:
            rows = [(state, reason) for job, state, reason in _rows(self.name) if job == self.number]
        except OSError as error:
            if now > self._last_answer + UNREACHABLE_S:
                raise OSError(f"Slurm has not answered for {UNREACHABLE_S / 60:.0f} minutes: {error}") from None
            return False
        self._last_answer = now
        if rows:
            self._states = Counter(state for state, _ in rows)
        open_rows = [(state, reason) for state, reason in rows if state not in _ENDED]
        for state, reason in open_rows:
            if state == "PENDING" and reason in _NEVER_STARTS:
                raise OSError(f"Slurm job {self.number} can never start: {reason}")
        self._report_waiting(open_rows, now)
        return not open_rows

    def state(self) -> str:
        """Describe how jobs of the array failed, as far as Slurm still knows."""
        bad = [f"{count} {state}" for state, count in sorted(self._states.items()) if state in _ENDED - {"COMPLETED"}]
        return f"Slurm job {self.number}: {', '.join(bad) or 'ended, cause unknown'}"

    def cancel(self) -> None:
        """Cancel the array and wait until it has ended."""
        cancel_named(self.name)

    def _report_waiting(self, rows: list[tuple[str, str]], now: float) -> None:
        """Print why no job runs: after a minute of waiting, and again when the reason changes."""
        reasons = sorted({reason for state, reason in rows if state == "PENDING"})
        if not reasons or any(state != "PENDING" for state, _ in rows):
            self._last_running = now
        elif now > self._last_running + WAITING_S and self._shown_reason != (shown := ", ".join(reasons)):
            self._shown_reason = shown
            print(f"Slurm job {self.number} is waiting: {shown}", file=sys.stderr, flush=True)


def _rows(name: str) -> list[tuple[str, str, str]]:
    """Return (array number, state, reason) of all jobs with a name that Slurm still knows."""
    listed = _output("squeue", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%F|%T|%r")
    rows = []
    for line in listed.splitlines():
        number, state, reason = line.strip().split("|", 2)
        rows.append((number, state, reason.strip("()").replace(" ", "_")))
    return rows


def _output(*command: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise OSError(" ".join(done.stderr.split()) or f"{command[0]} failed with exit code {done.returncode}")
    return done.stdout
