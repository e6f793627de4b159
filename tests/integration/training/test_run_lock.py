"""The lock on a run's folder: refused while the holder lives, free after its death, on every file system."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from runs import (
    clean_environment,
    logged_lines,
    pretrain_command,
    read_metrics,
    run_captured,
    run_pretrain,
    small_config,
    wait_until,
)

from bert_pld.cluster.run_lock import RunLock, RunLockedError
from bert_pld.files import RUN_LOCK

HOLDER = """
import fcntl, socket, sys, time
from pathlib import Path
from bert_pld.cluster import run_lock
if sys.argv[2] == "on_another_machine":
    fcntl.lockf = lambda file, operation: None
    socket.gethostname = lambda: "n7"
    run_lock.boot_id = lambda: "another boot"
run_lock.RunLock(Path(sys.argv[1]), 0.05).acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def start_holder(tmp_path):
    """Start a process that holds the lock of `tmp_path`."""
    started = []

    def start(where):
        command = [sys.executable, "-c", HOLDER, str(tmp_path), where]
        started.append(subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def holder(start_holder):
    return start_holder("on_this_machine")


def test_second_run_is_refused_and_killed_run_does_not_keep_the_lock(holder, tmp_path, monkeypatch):
    with pytest.raises(RunLockedError, match=f"in use by another run .*process {holder.pid}"):
        RunLock(tmp_path).acquire()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits for heartbeats, though the holder is dead"))
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.release()
    assert (tmp_path / RUN_LOCK).read_bytes() == b""


@pytest.mark.parametrize("kernel", ["keeps_locks_to_one_node", "has_no_locks"])
def test_heartbeat_of_another_machine_keeps_the_lock_until_it_stops(kernel, start_holder, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "lockf", lockf_failing_with(errno.ENOLCK if kernel == "has_no_locks" else 0))
    other = start_holder("on_another_machine")
    with pytest.raises(RunLockedError, match=f"host n7, process {other.pid}"):
        RunLock(tmp_path, 2.0).acquire()  # patient: the other one may be slow to send its next heartbeat
    other.kill()
    other.wait()
    own = RunLock(tmp_path, 0.05)
    own.acquire()
    assert json.loads((tmp_path / RUN_LOCK).read_text())["pid"] == os.getpid()
    own.release()


def test_heartbeat_survives_errors_of_the_file_system_and_a_file_that_could_not_be_written(tmp_path, monkeypatch):
    lock, read, failures = RunLock(tmp_path, 0.02), os.pread, [errno.EIO, errno.ESTALE]

    def failing_twice(*arguments):
        if failures:
            raise OSError(failures.pop(), "cannot be read now")
        return read(*arguments)

    lock.acquire()
    monkeypatch.setattr(os, "pread", failing_twice)
    os.truncate(tmp_path / RUN_LOCK, 0)  # As after a first write on a full disk.
    wait_until(lambda: not failures and beat_in(tmp_path) > 0)
    before = beat_in(tmp_path)
    wait_until(lambda: beat_in(tmp_path) > before)
    lock.release()


def beat_in(folder):
    text = (folder / RUN_LOCK).read_text()
    return json.loads(text)["beat"] if text.strip() else 0


def test_run_whose_folder_another_run_took_says_so(tmp_path, capfd):
    lock = RunLock(tmp_path, 0.02)
    lock.acquire()
    other = {"token": "other", "machine": "another boot", "host": "n7", "pid": 12, "beat": 0}
    (tmp_path / RUN_LOCK).write_text(json.dumps(other) + " " * 400)
    wait_until(lambda: not lock._heartbeat.is_alive())
    printed = capfd.readouterr().err
    assert f"warning: {tmp_path}: another run (host n7, process 12) took the folder while this one was" in printed
    lock.release()
    assert json.loads((tmp_path / RUN_LOCK).read_text()) == other


def lockf_failing_with(number):
    """Return an `fcntl.lockf` of a file system without locks; 0: of one that keeps locks to one machine."""

    def lockf(file, operation):
        if number:
            raise OSError(number, os.strerror(number))

    return lockf


@pytest.mark.parametrize(
    ("number", "left_by_another_machine"),
    [(0, True), (errno.ENOLCK, False), (errno.EOPNOTSUPP, True), (errno.EIO, False)],
)
def test_one_of_two_runs_gets_the_lock_where_the_kernel_does_not_help(
    number, left_by_another_machine, tmp_path, monkeypatch
):
    monkeypatch.setattr(fcntl, "lockf", lockf_failing_with(number))
    for _ in range(3):  # A thread that the machine stops for a heartbeat is taken for dead.
        if left_by_another_machine:
            (tmp_path / RUN_LOCK).write_text(json.dumps({"token": "dead", "machine": "another boot", "beat": 3}))
        outcomes = outcomes_of_two_runs(tmp_path)
        if outcomes == ["acquired", "refused"]:
            break
    assert outcomes == ["acquired", "refused"]


def outcomes_of_two_runs(folder):
    locks, outcomes = [RunLock(folder, 0.1) for _ in range(2)], []

    def acquire(lock):
        try:
            lock.acquire()
            outcomes.append("acquired")
        except RunLockedError:
            outcomes.append("refused")

    threads = [threading.Thread(target=acquire, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lock in locks:
        lock.release()
    return sorted(outcomes)


def test_pretraining_refuses_a_folder_in_use_and_does_not_change_it(corpus, holder, tmp_path):
    done = run_pretrain(small_config(), corpus, tmp_path, expect=1)
    assert f"process {holder.pid}" in done.stderr
    assert not (tmp_path / "metrics.jsonl").exists()


def test_second_job_on_a_folder_does_not_disturb_the_first(corpus, tmp_path):
    run_dir = tmp_path / "run"
    config = small_config(training={"max_steps": 1_000_000, "checkpoint_interval": 0, "eval_interval": 0})
    command = pretrain_command(config, corpus, run_dir)
    first = subprocess.Popen(command, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: logged_lines(run_dir) or first.poll() is not None)
        assert f"process {first.pid}" in run_captured(command, expect=1).stderr
    finally:
        first.terminate()
        assert first.wait(timeout=300) == 75
    steps = read_metrics(run_dir, "step")
    assert steps == list(range(1, len(steps) + 1))
    assert steps
