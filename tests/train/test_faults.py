"""A rank that is killed, stopped or fails ends the run on all ranks, with one line that names it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from runs import clean_environment, pretrain_command, small_config

from bert_pld.train.judge import EXIT_LOST_RANK

HEARTBEAT_S = 8

# The launcher exits with what it meets first: a survivor's code, or the killed rank's -9 as an exit status.
AFTER_SIGKILL = (EXIT_LOST_RANK, 256 - signal.SIGKILL)


class RunningRanks:
    """Two ranks under the real launcher, on a run that would last for hours."""

    def __init__(self, corpus, folder, *arguments, **blocks):
        self.run_dir, self.path = folder / "run", folder / "c.json"
        config = small_config(**blocks)
        config["training"].update(max_steps=1_000_000, checkpoint_interval=0, eval_interval=0)
        config["training"].update({"heartbeat_timeout": HEARTBEAT_S, **blocks.get("training", {})})
        self.path.write_text(json.dumps(config))
        self.error_file = folder / "stderr"
        command = pretrain_command(self.path, corpus, self.run_dir, *arguments, ranks=2)
        with open(self.error_file, "wb") as errors:
            self.launcher = subprocess.Popen(
                command, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )

    def wait_for_steps(self, count):
        metrics = self.run_dir / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not metrics.exists() or metrics.read_text().count("\n") < count:
            assert self.launcher.poll() is None, self.stderr()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def processes(self):
        """Process id → its rank (None: a launcher), of all that belong to this run and are no zombies."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ProcessLookupError):
                if entry.name.isdigit() and str(self.path).encode() in (entry / "cmdline").read_bytes():
                    rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", (entry / "environ").read_bytes())
                    found[int(entry.name)] = int(rank[1]) if rank else None
        return found

    def pid(self, rank):
        """Of the rank's process itself: its loader's workers come later and have higher numbers."""
        return min(pid for pid, of in self.processes().items() if of == rank)

    def end(self):
        """Wait for the end; exit code and seconds."""
        began = time.monotonic()
        code = self.launcher.wait(timeout=90)
        return code, time.monotonic() - began

    def stderr(self):
        return self.error_file.read_text()

    def errors(self):
        """The one-line errors, and no traceback beside them."""
        assert "Traceback" not in self.stderr(), self.stderr()[-3000:]
        return [line for line in self.stderr().splitlines() if line.startswith("error: ")]

    def kill_all(self):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.launcher.wait(timeout=30)


@pytest.fixture
def running(corpus, tmp_path):
    started = []

    def start(*arguments, **blocks):
        started.append(RunningRanks(corpus, tmp_path, *arguments, **blocks))
        started[-1].wait_for_steps(3)
        return started[-1]

    yield start
    for ranks in started:
        ranks.kill_all()


def named(rank, pid):
    return f"rank {rank} (host {socket.gethostname()}, process {pid})"


@pytest.mark.launcher
@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "number"),
    [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGSTOP)],
    ids=["killed_1", "killed_0", "stopped_1", "stopped_0"],
)
def test_lost_rank_is_named_once_and_ends_all(rank, number, running):
    run = running()
    pid = run.pid(rank)
    os.kill(pid, number)
    code, seconds = run.end()
    [error] = run.errors()
    killed = number == signal.SIGKILL
    how = " ended without a word" if killed else f" has given no sign of life for {HEARTBEAT_S} s"
    assert error.startswith(f"error: {named(rank, pid)}{how}")
    assert re.search(r" (it was last heard|rank 1 was) at step \d+, .*; all ranks end; the same command goes on", error)
    assert code in (AFTER_SIGKILL if killed else (EXIT_LOST_RANK,))
    # A bound that a hang would miss, not a measurement: gloo would wait for half an hour, the launcher for 30 seconds.
    assert seconds < (15 if killed else HEARTBEAT_S + 15)
    assert run.processes() == {}
    print(f"{seconds:.1f} s")
