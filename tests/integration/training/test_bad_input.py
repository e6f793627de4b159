"""A user's mistake or a failing disk gives one error line and exit code 1, and no checkpoint is lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time

import pytest
import torch
from runs import error_of, forked_runs, pretrain_command, read_metrics, run_captured, run_pretrain, small_config

from bert_pld.checkpoint.format import fault, list_checkpoints
from bert_pld.files import RUN_LOCK


@pytest.fixture(scope="module")
def finished_run(corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    run_pretrain(small_config(training={"max_steps": 4}), corpus, run_dir)
    return run_dir


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "fp16.enabled=true"], "fp16.enabled: true, but this machine has no GPU"),
        (["--set", "train_batch_size=9"], "train_batch_size: 9; must be"),
        (["--set", "model.vocab_size=16"], "vocabulary of 64 entries; the model has 16"),
        (["--set", "data.seq_length=16"], "sequences of 32 tokens; the run is configured for 16"),
        (["--set", "progressive_layer_drop.thta=0.3"], "did you mean 'theta'"),
        (["--set", "optimizer.type=ApexFusedAdam"], "needs NVIDIA Apex, which is not installed"),
        (["--set", "optimizer.params.learning_rate=1"], "optimizer.params.learning_rate: unknown key"),
        (["--data_dir", "/nowhere"], "data directory /nowhere: does not exist"),
        (["--data_dir", "/etc"], "holds no manifest.json"),
        (["--resume", "/nowhere"], "/nowhere: no checkpoint found"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_mistake_gives_one_error_line(arguments, message, corpus, tmp_path):
    if "fp16" in arguments[-1] and torch.cuda.is_available():
        pytest.skip("this machine can train in fp16")
    done = run_pretrain(small_config(), corpus, tmp_path / "run", *arguments, expect=1)
    assert message in error_of(done)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["--resume", "never"], "contains checkpoints of an earlier run"),
        ({"model": {"hidden_size": 64}}, [], "model.hidden_size is 32 in the checkpoint, 64 in this run"),
        (
            {"progressive_layer_drop": {"theta": 0.6}},
            [],
            "progressive_layer_drop.theta is 0.5 in the checkpoint, 0.6 in this run",
        ),
        ({"train_batch_size": 16}, [], "train_batch_size is 8 in the checkpoint, 16 in this run"),
        ({}, ["--set", "data.shuffle=blocks"], "data.shuffle is 'global' in the checkpoint, 'blocks' in this run"),
        (
            {},
            ["--set", "training.max_steps=3"],
            "training.max_steps: 3; must be at least 4, the step of the checkpoint",
        ),
    ],
    ids=["resume_never", "another_model", "another_schedule", "another_batch", "another_order", "fewer_steps"],
)
def test_checkpoints_of_another_run_are_neither_used_nor_changed(changes, arguments, message, corpus, finished_run):
    before = (finished_run / "metrics.jsonl").read_bytes(), (finished_run / "config.json").read_bytes()
    changes = {**changes, "training": {"max_steps": 4}}
    done = run_pretrain(small_config(**changes), corpus, finished_run, *arguments, expect=1)
    assert message in error_of(done)
    assert ((finished_run / "metrics.jsonl").read_bytes(), (finished_run / "config.json").read_bytes()) == before
    assert (finished_run / RUN_LOCK).read_bytes() == b""  # as a run leaves it that was not killed
    assert [fault(checkpoint) for checkpoint in list_checkpoints(finished_run / "checkpoints")] == [None]


def test_weights_of_a_model_of_another_shape_are_refused(corpus, finished_run, tmp_path):
    changed = small_config(model={"num_layers": 4})
    done = run_pretrain(changed, corpus, tmp_path / "run", "--initialize_from", str(finished_run), expect=1)
    assert "does not fit the model: encoder.blocks.3" in error_of(done)


def test_second_phase_starts_from_the_weights_of_the_first(corpus, finished_run, tmp_path):
    first = read_metrics(finished_run, "eval_mlm_loss")[-1]
    config = small_config(training={"max_steps": 1}, optimizer={"params": {"lr": 0.0}})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "diverged.json").write_text("{}")  # from an earlier attempt
    run_pretrain(config, corpus, tmp_path / "run", "--initialize_from", str(finished_run))
    assert not (tmp_path / "run" / "diverged.json").exists()
    assert read_metrics(tmp_path / "run", "eval_mlm_loss")[-1] == pytest.approx(first, rel=1e-6)


def test_non_finite_loss_stops_the_run_and_keeps_the_last_checkpoint(corpus, tmp_path):
    config = small_config(gradient_clipping=0.0, optimizer={"params": {"lr": 1e25}})
    config["training"].update(checkpoint_interval=1, eval_interval=0)
    done = run_pretrain(config, corpus, tmp_path / "run", expect=1)
    assert "loss is not finite at step 2" in error_of(done)
    assert json.loads((tmp_path / "run" / "diverged.json").read_text()) == {"step": 2, "rank": 0}
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_00000001"]


@pytest.mark.parametrize("last", [1, 4])
def test_weights_that_are_not_finite_after_a_finite_loss_are_a_divergence_too(last, corpus, tmp_path):
    """The first step's update overflows in fp32, and the step is saved; it is the last one, or others follow."""
    sgd = {"type": "SGD", "params": {"lr": 1e30, "weight_decay": 1e10}}
    config = small_config(gradient_clipping=0.0, optimizer=sgd)
    config["training"].update(max_steps=last, checkpoint_interval=1, eval_interval=0)
    message = error_of(run_pretrain(config, corpus, tmp_path / "run", expect=1))
    assert re.search(r"the run has diverged at step 1: checkpoint .*step_00000001 could not be written", message)
    assert json.loads((tmp_path / "run" / "diverged.json").read_text()) == {"step": 1, "rank": None}
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")


def test_previous_checkpoint_is_kept_if_a_write_fails(corpus, finished_run, tmp_path):
    """The file-size limit is below the size of the optimizer's files, so a write fails in the middle."""
    config = small_config(training={"max_steps": 8}, progressive_layer_drop={"gamma": 25.0})
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir)
    command = pretrain_command(config, corpus, run_dir)
    limits = (resource.RLIMIT_FSIZE, (100_000, 100_000))
    message = error_of(run_captured(command, expect=1, preexec_fn=lambda: resource.setrlimit(*limits)))
    assert "step_00000008 could not be written" in message
    assert "the previous checkpoint step_00000004 is unchanged" in message
    left = sorted(p.name for p in (run_dir / "checkpoints").iterdir())
    assert left == ["latest", "step_00000004"]
    assert fault(run_dir / "checkpoints" / "step_00000004") is None


@pytest.fixture
def small_file_system(tmp_path, request):
    """A separate file system of a few megabytes."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = tmp_path / "full"
    mount.mkdir()
    size = f"size={request.param}m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize("small_file_system", [3], indirect=True)
def test_full_file_system_is_reported_before_anything_is_written(corpus, small_file_system):
    run_dir = small_file_system / "run"
    config = small_config()
    config["training"].update(checkpoint_interval=1, keep_checkpoints=12)
    done = run_pretrain(config, corpus, run_dir, expect=1)
    assert "no space left" in error_of(done)
    kept = list_checkpoints(run_dir / "checkpoints")
    assert len(kept) >= 1
    assert all(fault(checkpoint) is None for checkpoint in kept)
    assert f"the previous checkpoint {kept[0].name} is unchanged" in error_of(done)


@pytest.mark.parametrize("small_file_system", [160], indirect=True)
def test_previous_checkpoint_is_kept_if_the_file_system_fills_up_during_a_write(corpus, small_file_system, tmp_path):
    """Other files fill the file system after the check for free space: 4 MB are left, and a checkpoint needs 36."""
    config = small_config(model={"hidden_size": 256, "intermediate_size": 1024, "num_layers": 4})
    config["training"].update(checkpoint_interval=2, eval_interval=0, max_steps=6)
    run_dir, other_file = small_file_system / "run", small_file_system / "other_file"
    for attempt in range(10):  # on a busy machine, the write may end before it is noticed
        log = tmp_path / f"{attempt}.log"
        if code := _fill_while_writing(config, corpus, run_dir, other_file, log):
            break
        other_file.unlink()
        shutil.rmtree(run_dir)
    assert code == 1
    error = log.read_text().strip().splitlines()[-1]
    assert "step_00000004 could not be written (rank 0: [Errno 28] No space left on device" in error
    assert error.endswith("; the previous checkpoint step_00000002 is unchanged")
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["latest", "step_00000002"]
    other_file.unlink()
    run_pretrain(config, corpus, run_dir)
    assert read_metrics(run_dir, "step")[:6] == [1, 2, 3, 4, 5, 6]
    assert fault(run_dir / "checkpoints" / "step_00000006") is None


def _fill_while_writing(config, corpus, run_dir, other_file, log):
    """Fill all but 4 MB of the file system once a run begins its second checkpoint; return the run's exit code."""
    runs = forked_runs()
    partial, whole = (run_dir / "checkpoints" / name for name in (".step_00000004.partial", "step_00000004"))
    pid = runs.start(pretrain_command(config, corpus, run_dir), log, log)
    deadline = time.monotonic() + 240
    while not partial.exists() and not whole.exists() and time.monotonic() < deadline:
        pass
    os.kill(pid, signal.SIGSTOP)
    with open(other_file, "wb") as file, contextlib.suppress(OSError):
        while (free := shutil.disk_usage(other_file.parent).free) > 4 << 20:
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free - (2 << 20))
    os.kill(pid, signal.SIGCONT)
    return runs.wait(pid)
