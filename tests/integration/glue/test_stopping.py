"""Stop signals to real processes: the exit code, the finished results, and how a rerun continues."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from finetune_runs import finetune, finetune_command, result_of
from runs import clean_environment

from bert_pld.cluster.stopping import EXIT_PREEMPTED

LONG = ["--epochs", "2000", "--seeds", "1"]
"""A fine-tuning of many minutes, which the test interrupts after seconds."""
HELD = "held for a signal"
HOLDING = f"""
import itertools, runpy, sys, time
from bert_pld.cluster.stopping import Preemption
from bert_pld.finetuning import loop
handle, collate, calls, caught = Preemption._handle, loop.collate, itertools.count(1), []
def noted(self, number, frame):
    caught.append(number)
    handle(self, number, frame)
def counted(*arguments, **options):
    if next(calls) == held_at:
        print("{HELD}", flush=True)
        while not caught:
            time.sleep(0.01)
    return collate(*arguments, **options)
held_at, Preemption._handle, loop.collate = int(sys.argv.pop(1)), noted, counted
runpy.run_module("bert_pld.finetune_glue", run_name="__main__", alter_sys=True)
"""
"""The command, which waits for a signal at one of its batches of training and predictions, counted from 1."""
MESSAGE = "stopped by a signal; the work is saved, run the same command again to continue"


@pytest.fixture
def start():
    """Return a function that starts a fine-tuning; its processes are killed after the test."""
    started = []

    def start(*arguments, held_at=None, **options):
        command = finetune_command(*arguments, **options)
        if held_at is not None:
            command = [command[0], "-c", HOLDING, str(held_at), *command[3:]]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        started.append(subprocess.Popen(command, env=clean_environment(), start_new_session=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(process, beginning):
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(f"exited without a line that begins with {beginning!r}")


def rank_of(output_dir, local_rank):
    """Return the process id of a rank started by the launcher."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if {str(output_dir), f"--local_rank={local_rank}"} <= set(words):
            return int(path.parent.name)
    raise AssertionError(f"no rank {local_rank}")


def test_finished_results_are_kept_and_the_same_command_continues(glue_dir, checkpoint, start, tmp_path):
    arguments = [glue_dir, checkpoint, tmp_path / "out", "--epochs", "8", "--seeds", "1", "2"]
    # An epoch has 25 steps, 4 batches of the dev file, and one of the test file if it is the best one so far.
    process = start(*arguments, held_at=8 * 30 + 5)
    wait_for(process, "SST-2, lr 0.003, seed 1: ")
    wait_for(process, HELD)
    process.send_signal(signal.SIGUSR1)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == EXIT_PREEMPTED == 75
    assert printed.splitlines()[-1] == MESSAGE
    first = tmp_path / "out" / "SST-2" / "lr_0.003_seed_1" / "result.json"
    assert list(tmp_path.glob("out/SST-2/*/result.json")) == [first]
    written = first.stat().st_mtime_ns
    again = finetune(*arguments)
    assert "SST-2: 2 fine-tunings, 1 of them done" in again.stdout
    assert first.stat().st_mtime_ns == written
    assert len(result_of(tmp_path / "out", seed=2)["epochs"]) == 8


@pytest.mark.parametrize(
    ("file", "arguments", "line"),
    [
        pytest.param("train", [], "SST-2: 1 fine-tunings", id="while reading files"),
        pytest.param("train", [], HELD, id="within an epoch"),
        pytest.param("test", ["--max_train_rows", "1"], HELD, id="during predictions"),
    ],
)
def test_signal_stops_within_seconds(file, arguments, line, glue_dir, checkpoint, start, tmp_path):
    """Here an epoch takes minutes, and so do the predictions for the test file."""
    has_begun = line == HELD
    shutil.copytree(glue_dir, tmp_path / "glue")
    path = tmp_path / "glue" / "SST-2" / f"{file}.tsv"
    header, *rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join([header, *rows * (120_000 // len(rows))]))
    options = [*LONG, "--batch_size", "1", *arguments]
    process = start(tmp_path / "glue", checkpoint, tmp_path / "out", *options, held_at=200 if has_begun else None)
    wait_for(process, line)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_PREEMPTED
    assert printed.splitlines()[-1] == MESSAGE
    saved = [path.parents[1].name for path in tmp_path.glob("out/SST-2/*/interrupted/checksums.json")]
    assert saved == (["lr_0.003_seed_1"] if has_begun else [])


@pytest.mark.thorough
@pytest.mark.launcher
def test_all_ranks_stop_when_one_gets_a_signal(glue_dir, checkpoint, start, tmp_path):
    process = start(glue_dir, checkpoint, tmp_path / "out", *LONG, ranks=2)
    wait_for(process, "SST-2: train 400")
    time.sleep(3)
    os.kill(rank_of(tmp_path / "out", 1), signal.SIGUSR1)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_PREEMPTED
    assert MESSAGE in printed.splitlines()  # by rank 0
