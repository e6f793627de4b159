"""One run a folder: refused while the other lives, free as soon as it is dead, whatever the file system knows."""

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
from runs import clean_environment, pretrain_command, read_metrics, run_pretrain, small_config

from bert_pld.cluster.run_lock import RunLock, RunLockedError
from bert_pld.files import RUN_LOCK

HOLDER = """
import sys, time
from pathlib import Path
from bert_pld.cluster.run_lock import RunLock
RunLock(Path(sys.argv[1]), 0.05).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], env=clean_environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_second_run_is_refused_by_name_and_a_killed_one_keeps_nothing(holder, tmp_path, monkeypatch):
    with pytest.raises(RunLockedError, match=f"another run is at work in it .*process {holder.pid}"):
        RunLock(tmp_path).acquire()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
    began = time.monotonic()
    lock = RunLock(tmp_path)
    lock.acquire()
    assert time.monotonic() - began < 1.0
    lock.release()
    assert (tmp_path / RUN_LOCK).read_bytes() == b""


@pytest.mark.parametrize("kernel", ["keeps_locks_to_one_node", "has_no_locks"])
def test_beat_of_another_machine_refuses_and_its_silence_frees(kernel, tmp_path, monkeypatch):
    def lockf(file, operation):
        if kernel == "has_no_locks":
            raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    elsewhere = RunLock(tmp_path, 0.05)
    elsewhere._own.update(machine="another boot", host="n7", pid=11)
    elsewhere.acquire()
    with pytest.raises(RunLockedError, match=r"host n7, process 11"):
        RunLock(tmp_path, 0.05).acquire()
    elsewhere._ended.set()  # the machine is gone, without a word
    elsewhere._beating.join()
    here = RunLock(tmp_path, 0.05)
    here.acquire()
    assert json.loads((tmp_path / RUN_LOCK).read_text())["pid"] == os.getpid()
    here.release()


def test_of_two_newcomers_after_a_dead_machine_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "lockf", lambda file, operation: None)
    (tmp_path / RUN_LOCK).write_text(json.dumps({"token": "dead", "machine": "another boot", "beat": 3}))
    outcomes = []

    def come():
        lock = RunLock(tmp_path, 0.1)
        try:
            lock.acquire()
            outcomes.append("in")
        except RunLockedError:
            outcomes.append("refused")

    threads = [threading.Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in", "refused"]


def test_pretraining_refuses_a_folder_in_use_and_leaves_it_alone(corpus, holder, tmp_path):
    done = run_pretrain(small_config(), corpus, tmp_path, expect=1)
    assert f"process {holder.pid}" in done.stderr
    assert not (tmp_path / "metrics.jsonl").exists()


def test_two_jobs_on_one_folder_the_first_trains_on_undisturbed(corpus, tmp_path):
    run_dir, config = tmp_path / "run", tmp_path / "c.json"
    config.write_text(
        json.dumps(small_config(training={"max_steps": 400, "checkpoint_interval": 0, "eval_interval": 0}))
    )
    command = pretrain_command(config, corpus, run_dir)
    first = subprocess.Popen(command, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (run_dir / "metrics.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=120)
        assert second.returncode == 1
        assert f"process {first.pid}" in second.stderr
    finally:
        first.terminate()
        assert first.wait(timeout=60) == 75
    steps = read_metrics(run_dir, "step")
    assert steps == sorted(set(steps))
