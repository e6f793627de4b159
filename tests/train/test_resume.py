"""Killed anywhere and started again, a run repeats the uninterrupted one bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import warnings

import pytest
from runs import clean_environment, pretrain_command, read_metrics, run_pretrain, small_config

from bert_pld.train.checkpoint import list_checkpoints, newest_valid
from bert_pld.train.preemption import EXIT_PREEMPTED

KEYS = ("step", "samples", "tokens", "loss", "mlm_loss", "nsp_loss", "lr", "theta", "kept_blocks", "eval_mlm_loss")


def config(**changes):
    """12 steps with dropout, accumulation, a decaying θ and a checkpoint every 3 steps."""
    changes = {"progressive_layer_drop": {"temporal": "exponential", "gamma": 0.2}, **changes}
    return small_config(training={"checkpoint_interval": 3, "eval_interval": 4}, **changes)


def series(run_dir):
    return {key: read_metrics(run_dir, key) for key in KEYS}


def kill_when(run_dir, command, ready, number=signal.SIGKILL):
    """Start a run, signal its process once `ready(run_dir)` holds, return its exit code."""
    process = subprocess.Popen(command, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not ready(run_dir) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, number)
    return process.wait(timeout=120)


def lines(run_dir):
    path = run_dir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run_pretrain(config(), corpus, run_dir)
    return series(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("after_lines", [1, 3, 5, 8, 11])
def test_killed_run_resumes_bitwise(after_lines, corpus, uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    path = tmp_path / "c.json"
    path.write_text(json.dumps(config()))
    kill_when(run_dir, pretrain_command(path, corpus, run_dir), lambda d: lines(d) >= after_lines)
    run_pretrain(config(), corpus, run_dir)
    assert series(run_dir) == uninterrupted


@pytest.mark.launcher
@pytest.mark.parametrize("stage", [1, 3])
def test_two_ranks_resume_bitwise_from_an_earlier_checkpoint(stage, corpus, tmp_path):
    changes = {"zero_optimization": {"stage": stage}, "progressive_layer_drop": {"granularity": "sample"}}
    run_dir = tmp_path / "run"
    run_pretrain(config(**changes), corpus, run_dir, ranks=2)
    whole = series(run_dir)
    for checkpoint in list_checkpoints(run_dir / "checkpoints")[:2]:
        shutil.rmtree(checkpoint)
    run_pretrain(config(**changes), corpus, run_dir, ranks=2)
    assert series(run_dir) == whole


@pytest.mark.launcher
def test_stage_zero_resumes_with_another_number_of_ranks(corpus, tmp_path):
    run_dir = tmp_path / "run"
    off = config(model={"hidden_dropout": 0.0, "attention_dropout": 0.0})
    run_pretrain(off, corpus, run_dir, ranks=2)
    whole = series(run_dir)
    for checkpoint in list_checkpoints(run_dir / "checkpoints")[:2]:
        shutil.rmtree(checkpoint)
    run_pretrain({**off, "train_micro_batch_size_per_gpu": 8}, corpus, run_dir)
    resumed = series(run_dir)
    assert resumed["step"] == whole["step"]
    assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_sigterm_finishes_the_step_checkpoints_and_asks_for_a_requeue(corpus, uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    path = tmp_path / "c.json"
    path.write_text(json.dumps(config()))
    code = kill_when(run_dir, pretrain_command(path, corpus, run_dir), lambda d: lines(d) >= 4, signal.SIGTERM)
    assert code == EXIT_PREEMPTED
    stopped = read_metrics(run_dir, "step")[-1]
    assert newest_valid(run_dir / "checkpoints").name == f"step_{stopped:08d}"
    run_pretrain(config(), corpus, run_dir)
    assert read_metrics(run_dir) == uninterrupted["loss"]


def test_broken_newest_checkpoint_is_skipped_with_a_warning(corpus, uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    run_pretrain(config(), corpus, run_dir)
    newest, second, *_ = list_checkpoints(run_dir / "checkpoints")
    weights = newest / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert newest_valid(run_dir / "checkpoints") == second
    assert "SHA-256 differs" in str(caught[0].message)
    run_pretrain(config(), corpus, run_dir)
    assert series(run_dir) == uninterrupted


def test_checkpoints_are_pruned_and_leave_nothing_half_written(corpus, tmp_path):
    changed = config()
    changed["training"]["keep_checkpoints"] = 2
    run_pretrain(changed, corpus, tmp_path / "run")
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["latest", "step_00000009", "step_00000012"]
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step_00000012\n"
