"""If a rank is killed, stopped or fails, all ranks end with one error line that names it."""

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

import numpy as np
import pytest
from runs import (
    clean_environment,
    logged_lines,
    pretrain_command,
    read_metrics,
    run_pretrain,
    small_config,
    wait_until,
    write_corpus,
)

from bert_pld.cluster.coordinator import EXIT_LOST_RANK
from bert_pld.data.rows import ShardedRows

HEARTBEAT_S = 8

# The launcher exits with the code of the rank whose end it notices first: the survivor's, or the killed one's -9 as an
# exit status.
AFTER_SIGKILL = (EXIT_LOST_RANK, 256 - signal.SIGKILL)


class RunningRanks:
    """Two ranks under the real launcher, in a run that would take hours."""

    def __init__(self, corpus, folder, *arguments, **blocks):
        self.run_dir, self.path = folder / "run", folder / "run.json"
        config = small_config(**blocks)
        config["training"].update(max_steps=1_000_000, checkpoint_interval=0, eval_interval=0)
        config["training"].update({"heartbeat_timeout": HEARTBEAT_S, **blocks.get("training", {})})
        self.error_file = folder / "stderr"
        command = pretrain_command(config, corpus, self.run_dir, *arguments, ranks=2)
        with open(self.error_file, "wb") as errors:
            self.launcher = subprocess.Popen(
                command, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )

    def wait_for_steps(self, count):
        wait_until(lambda: logged_lines(self.run_dir) >= count or self.launcher.poll() is not None)
        assert self.launcher.poll() is None, self.stderr()[-3000:]

    def processes(self):
        """Return the rank of each process of this run by its id (None for launchers), without zombies."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ProcessLookupError):
                if entry.name.isdigit() and str(self.path).encode() in (entry / "cmdline").read_bytes():
                    rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", (entry / "environ").read_bytes())
                    found[int(entry.name)] = int(rank[1]) if rank else None
        return found

    def pid(self, rank):
        """Return the id of the rank's own process; its loader's workers start later and have higher ids."""
        return min(pid for pid, owner in self.processes().items() if owner == rank)

    def wait_for_end(self):
        """Wait for the end; return exit code and seconds."""
        began = time.monotonic()
        code = self.launcher.wait(timeout=300)
        return code, time.monotonic() - began

    def stderr(self):
        return self.error_file.read_text()

    def errors(self):
        """Return the error lines; there must be no traceback."""
        assert "Traceback" not in self.stderr(), self.stderr()[-3000:]
        return [line for line in self.stderr().splitlines() if line.startswith("error: ")]

    def kill_all(self):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.launcher.wait(timeout=120)


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
@pytest.mark.parametrize(
    ("rank", "number"),
    [(1, signal.SIGKILL), pytest.param(1, signal.SIGSTOP, marks=pytest.mark.thorough), (0, signal.SIGSTOP)],
    ids=["killed_1", "stopped_1", "stopped_0"],
)
def test_lost_rank_is_named_once_and_all_ranks_end(rank, number, running):
    run = running()
    pid = run.pid(rank)
    os.kill(pid, number)
    code, seconds = run.wait_for_end()
    [error] = run.errors()
    killed = number == signal.SIGKILL
    how = " exited unexpectedly" if killed else f" sent no heartbeat for {HEARTBEAT_S} s"
    assert error.startswith(f"error: {named(rank, pid)}{how}")
    position = "(its last reported position|the position of rank 1)"
    assert re.search(rf"; {position} is .+; all ranks stop; run the same command again", error)
    assert code in (AFTER_SIGKILL if killed else (EXIT_LOST_RANK,))
    # If ranks hung, gloo would wait for half an hour and the launcher for 30 seconds.
    assert seconds < (29 if killed else HEARTBEAT_S + 29)
    wait_until(lambda: not run.processes(), 20)
    print(f"{seconds:.1f} s")


@pytest.mark.launcher
def test_truncated_shard_is_named_and_the_run_resumes_once_it_is_restored(tmp_path):
    """The shard is mapped, so reading beyond its new end is a bus error, not an exception."""
    corpus = write_corpus(tmp_path / "corpus")
    shard = corpus / "train_00000.hdf5"
    content = shard.read_bytes()
    sizes = {"train_batch_size": 256, "train_micro_batch_size_per_gpu": 128}  # the loader prepares eight steps ahead
    every = {"checkpoint_interval": 1}
    run = RunningRanks(corpus, tmp_path, training=every, progressive_layer_drop={"gamma": 0.1}, **sizes)
    try:
        run.wait_for_steps(3)
        os.truncate(shard, 4096)
        code, _ = run.wait_for_end()
        assert code == 1, run.stderr()
        assert run.errors() == [f"error: {shard}: has 4096 bytes; the manifest.json says {len(content)} bytes"]
        wait_until(lambda: not run.processes(), 20)
    finally:
        run.kill_all()
    shard.write_bytes(content)
    last = len(read_metrics(run.run_dir))
    config = {**json.loads(run.path.read_text()), "train_micro_batch_size_per_gpu": 256}
    done = run_pretrain(config, corpus, run.run_dir, "--set", f"training.max_steps={last + 3}")
    assert "resuming after step" in done.stdout
    assert len(read_metrics(run.run_dir)) == last + 3


@pytest.mark.parametrize(
    ("column", "value"), [("input_ids", 64), ("length", 33), ("segment_b_start", 60000), ("next_sentence_label", 2)]
)
def test_row_with_an_invalid_value_is_named_with_its_file(column, value, tmp_path):
    """The shard is overwritten while it is mapped, as could happen during training."""
    corpus = write_corpus(tmp_path / "corpus")
    rows = ShardedRows(corpus, "train")
    rows.read(np.arange(96))
    shard = rows.shard(0)
    with open(shard.path, "r+b") as file:
        file.seek(shard.offsets[column] + 41 * (shard.columns[column].nbytes // 96))
        file.write(np.array(value, shard.columns[column].dtype).tobytes())
    assert len(rows.read(np.arange(41))["length"]) == 41
    with pytest.raises(ValueError, match=f"train_00000.hdf5: damaged, row 41 has {column} {value}, which must be in"):
        rows.read(np.array([95, 41, 3]))
