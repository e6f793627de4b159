"""A run that is interrupted anywhere and resumed repeats the uninterrupted run bitwise."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import numpy as np
import pytest
from runs import (
    clean_environment,
    error_of,
    logged_lines,
    pretrain_command,
    read_metrics,
    run_pretrain,
    small_config,
    start_with_signal,
    wait_until,
    write_corpus,
)

from bert_pld.checkpoint.format import fault, list_checkpoints, newest_valid, write_checksums
from bert_pld.cluster.stopping import EXIT_PREEMPTED

KEYS = ("step", "samples", "tokens", "loss", "mlm_loss", "nsp_loss", "lr", "theta", "kept_blocks", "eval_mlm_loss")

ALWAYS_PRESENT = ("checksums.json", "config.json", "model.safetensors", "state.json", "tokenizer.json", "vocab.txt")


STEPS = 12


def config(**changes):
    """12 steps with dropout, accumulation, a decaying θ and a checkpoint every 3 steps."""
    changes = {"progressive_layer_drop": {"temporal": "exponential", "gamma": 0.2}, **changes}
    return small_config(training={"checkpoint_interval": 3, "eval_interval": 4}, **changes)


def series(run_dir):
    """Return the values of the first 12 steps."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {key: [one[key] for one in records if key in one and one["step"] <= STEPS] for key in KEYS}


def start_silently(command):
    return subprocess.Popen(command, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def signal_when_logged(lines, corpus, run_dir, number):
    """Start a run, which does not end by itself, signal it once it has logged lines, and return its exit code."""
    process = start_silently(pretrain_command(config(), corpus, run_dir, "--set", "training.max_steps=1000000"))
    wait_until(lambda: logged_lines(run_dir) >= lines or process.poll() is not None)
    process.send_signal(number)
    return process.wait(timeout=300)


def finish(corpus, run_dir):
    """Let a signalled run end after step 12, or later if the signal came late; return its `series`."""
    newest = max((int(path.name.split("_")[1]) for path in list_checkpoints(run_dir / "checkpoints")), default=0)
    run_pretrain(config(), corpus, run_dir, "--set", f"training.max_steps={max(STEPS, newest + 1)}")
    return series(run_dir)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    run_pretrain(config(), corpus, run_dir)
    return run_dir


@pytest.fixture(scope="module")
def uninterrupted(finished):
    return series(finished)


def test_killed_run_resumes_bitwise(corpus, uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    assert signal_when_logged(5, corpus, run_dir, signal.SIGKILL) == -signal.SIGKILL
    assert finish(corpus, run_dir) == uninterrupted


def test_record_after_a_kill_counts_the_steps_before_the_checkpoint(corpus, tmp_path):
    """Records after steps 5, 10 and 12, killed after step 8, resumed after step 6."""
    changes = {"progressive_layer_drop": {"temporal": "exponential", "gamma": 0.2}}
    training = {"checkpoint_interval": 3, "eval_interval": 0, "log_interval": 5}
    both = small_config(training=training, **changes), small_config(training={**training, "max_steps": 8}, **changes)
    run_pretrain(both[0], corpus, tmp_path / "whole")
    run_pretrain(both[1], corpus, tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "step_00000008")
    run_pretrain(both[0], corpus, tmp_path / "killed")
    keys = ("step", "tokens", "loss", "mlm_loss", "kept_blocks")
    whole, killed = ({key: read_metrics(tmp_path / name, key) for key in keys} for name in ("whole", "killed"))
    assert len(whole["loss"]) == 3
    assert killed == whole


def test_run_resumes_bitwise_across_the_phases_of_its_learning_rate_and_its_masks(corpus, tmp_path):
    """From the checkpoint after step 3, in the warm-up, and after step 6, where the share of masks is falling."""
    params = {"warmup_num_steps": 4, "decay_num_steps": 4}
    masks = {"mask_probability": {"start": 0.4, "end": 0.1, "after": 5, "over": 4}, "eval_mask_probability": 0.2}
    phases = config(scheduler={"type": "WarmupStableDecayLR", "params": params}, data=masks)
    phases["training"]["keep_checkpoints"] = 4
    run_dir, keys = tmp_path / "run", ("phase", "mask_probability")
    run_pretrain(phases, corpus, run_dir)
    whole = [series(run_dir), *(read_metrics(run_dir, key) for key in keys)]
    assert whole[1] == ["warmup"] * 4 + ["stable"] * 4 + ["decay"] * 4
    assert whole[2] == pytest.approx([0.4] * 6 + [0.325, 0.25, 0.175] + [0.1] * 3)
    for step in (6, 3):
        for checkpoint in list_checkpoints(run_dir / "checkpoints"):
            if int(checkpoint.name.split("_")[1]) > step:
                shutil.rmtree(checkpoint)
        done = run_pretrain(phases, corpus, run_dir)
        assert f"resuming after step {step} from checkpoint" in done.stdout
        assert [series(run_dir), *(read_metrics(run_dir, key) for key in keys)] == whole


def test_modernbert_resumes_bitwise(corpus, tmp_path):
    """With dropout in all four places; under token granularity the block's positions are redrawn too."""
    changes = {"progressive_layer_drop": {"granularity": "token"}, "optimizer": {"type": "Muon"}}
    run = config(model={"architecture": "modernbert", "hidden_dropout": 0.1, "attention_dropout": 0.1}, **changes)
    run_dir = tmp_path / "run"
    run_pretrain(run, corpus, run_dir)
    whole = series(run_dir)
    shutil.rmtree(list_checkpoints(run_dir / "checkpoints")[0])
    done = run_pretrain(run, corpus, run_dir)
    assert "resuming after step 9 from checkpoint" in done.stdout
    assert series(run_dir) == whole
    assert min(whole["kept_blocks"]) < 3


@pytest.mark.launcher
def test_two_ranks_resume_bitwise_from_an_earlier_checkpoint(tmp_path):
    """On rows of several documents, so that a rank's share has the documents of its rows alone."""
    changes = {"zero_optimization": {"stage": 3}, "progressive_layer_drop": {"granularity": "token"}}
    corpus, run_dir = write_corpus(tmp_path / "packed", documents=True), tmp_path / "run"
    run_pretrain(config(**changes), corpus, run_dir, ranks=2)
    whole = series(run_dir)
    for checkpoint in list_checkpoints(run_dir / "checkpoints")[:2]:
        shutil.rmtree(checkpoint)
    run_pretrain(config(**changes), corpus, run_dir, ranks=2)
    assert series(run_dir) == whole


@pytest.mark.launcher
def test_number_of_ranks_and_zero_stage_can_change_when_a_run_is_resumed(corpus, tmp_path):
    """2 ranks with ZeRO 1, then 1 with ZeRO 3, then 2 with ZeRO 2, compared with one rank at stage 0."""
    off = config(model={"hidden_dropout": 0.0, "attention_dropout": 0.0})
    run_pretrain(off, corpus, tmp_path / "whole")
    for ranks, stage, last in ((2, 1, 4), (1, 3, 8), (2, 2, 12)):
        changed = {**off, "zero_optimization": {"stage": stage}, "train_micro_batch_size_per_gpu": 4 // ranks}
        steps = f"training.max_steps={last}"
        done = run_pretrain(changed, corpus, tmp_path / "run", "--set", steps, ranks=ranks)
        assert last == 4 or f"resuming after step {last - 4} from checkpoint" in done.stdout
    whole, changed = (series(tmp_path / name) for name in ("whole", "run"))
    for key in ("tokens", "theta", "kept_blocks"):
        assert changed[key] == whole[key], key
    assert changed["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    worst = max(abs(a - b) / b for a, b in zip(changed["loss"], whole["loss"], strict=True))
    print(f"largest relative difference of the loss: {worst:.1e}")


def test_sigterm_ends_the_run_after_the_step_and_a_checkpoint_with_exit_code_75(corpus, uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    assert signal_when_logged(4, corpus, run_dir, signal.SIGTERM) == EXIT_PREEMPTED
    stopped = read_metrics(run_dir, "step")[-1]
    assert newest_valid(run_dir / "checkpoints").name == f"step_{stopped:08d}"
    assert finish(corpus, run_dir)["loss"] == uninterrupted["loss"]


def test_signal_during_start_up_ends_the_run_after_the_first_step(corpus, tmp_path):
    run_dir, started = tmp_path / "run", []
    command = pretrain_command(config(), corpus, run_dir)

    def start():
        started.append(start_silently(command))
        return started[0].pid

    start_with_signal(start, run_dir, signal.SIGUSR1)
    assert started[0].wait(timeout=300) == EXIT_PREEMPTED
    assert read_metrics(run_dir, "step") == [1]
    assert newest_valid(run_dir / "checkpoints").name == "step_00000001"


def test_flipped_bit_in_any_file_is_detected_and_the_previous_checkpoint_is_used(finished, tmp_path):
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    newest, second, *_ = list_checkpoints(tmp_path / "checkpoints")
    names = sorted(path.name for path in newest.iterdir())
    assert names == sorted([*ALWAYS_PRESENT, "optimizer_exp_avg.safetensors", "optimizer_exp_avg_sq.safetensors"])
    rng = np.random.default_rng(0)
    for name in names:
        path = newest / name
        content = path.read_bytes()
        named = "" if name == "checksums.json" else name
        for place in {0, len(content) - 1, *rng.integers(0, len(content), 40).tolist()}:
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with pytest.warns(UserWarning, match=f"{newest.name} is damaged and skipped: .*{named}") as warnings:
                assert newest_valid(tmp_path / "checkpoints") == second
            # Python may warn here of what another test has left open.
            assert [one.category for one in warnings].count(UserWarning) == 1
        path.write_bytes(content[:-1])
        assert fault(newest) is not None
        path.write_bytes(content)
    assert fault(newest) is None


def test_run_resumes_from_the_checkpoint_before_a_broken_one_with_a_warning(corpus, finished, uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    newest, second, *_ = list_checkpoints(run_dir / "checkpoints")
    moments = newest / "optimizer_exp_avg.safetensors"
    damaged = bytearray(moments.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    moments.write_bytes(damaged)
    (run_dir / "checkpoints" / "latest").write_text("step_99999999\n")  # a wrong name: the run does not read this file
    os.utime(second, (0, 0))  # modification times do not count, only step numbers
    done = run_pretrain(config(), corpus, run_dir)
    assert "is damaged and skipped: optimizer_exp_avg.safetensors was changed after it was written" in done.stderr
    assert f"resuming after step 9 from checkpoint {second}" in done.stdout
    assert series(run_dir) == uninterrupted
    assert (run_dir / "checkpoints" / "latest").read_text() == "step_00000012\n"


def test_run_that_began_from_the_checkpoint_of_another_one_continues_its_own(corpus, finished, uninterrupted, tmp_path):
    command = config(), corpus, tmp_path / "run", "--resume", str(finished / "checkpoints" / "step_00000006")
    assert "resuming after step 6 from checkpoint" in run_pretrain(*command, "--set", "training.max_steps=9").stdout
    again = run_pretrain(*command).stdout
    assert f"resuming after step 9 from checkpoint {tmp_path / 'run' / 'checkpoints' / 'step_00000009'}" in again
    losses = read_metrics(tmp_path / "run", "loss")
    assert losses == uninterrupted["loss"][6:]


def test_run_that_begins_from_another_ones_checkpoint_keeps_no_record_of_an_earlier_attempt(
    corpus, finished, uninterrupted, tmp_path
):
    """The earlier attempt left its records, of steps before and after the checkpoint's, but no checkpoint."""
    run_dir, monitored = tmp_path / "run", config(csv_monitor={"enabled": True})
    run_pretrain(monitored, corpus, run_dir, "--set", "training.max_steps=8")
    shutil.rmtree(run_dir / "checkpoints")
    run_pretrain(monitored, corpus, run_dir, "--resume", str(finished / "checkpoints" / "step_00000006"))
    assert read_metrics(run_dir, "loss") == uninterrupted["loss"][6:]
    assert read_metrics(run_dir, "eval_mlm_loss") == uninterrupted["eval_mlm_loss"][1:]  # after steps 8 and 12
    _, *rows = (run_dir / "csv_monitor" / "run" / "train_loss.csv").read_text().splitlines()
    assert [int(row.partition(",")[0]) for row in rows] == [8 * step for step in range(7, 13)]


def test_earlier_checkpoint_of_a_run_is_not_resumed_beside_later_ones(corpus, finished, uninterrupted, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    earlier = run_dir / "checkpoints" / "step_00000006"
    refused = error_of(run_pretrain(config(), corpus, run_dir, "--resume", str(earlier), expect=1))
    assert f"--resume {earlier}: {run_dir} has later checkpoints step_00000009, step_00000012; move them" in refused
    for later in (9, 12):
        shutil.rmtree(run_dir / "checkpoints" / f"step_{later:08d}")
    assert "resuming after step 6 " in run_pretrain(config(), corpus, run_dir, "--resume", str(earlier)).stdout
    assert series(run_dir) == uninterrupted


def test_links_and_names_that_leave_the_checkpoint_are_refused(finished, tmp_path):
    newest = list_checkpoints(finished / "checkpoints")[0]
    copied = tmp_path / newest.name
    shutil.copytree(newest, copied)
    outside = tmp_path / "outside.json"
    (copied / "config.json").rename(outside)
    (copied / "config.json").symlink_to(outside)
    assert fault(copied) == "config.json is missing"
    (copied / "config.json").unlink()
    sums = json.loads((copied / "checksums.json").read_text())
    write_checksums(copied, {**sums, "../outside.json": sums["config.json"]})
    assert "is missing" in fault(copied)


def test_old_checkpoints_are_pruned_and_no_partial_files_remain(corpus, tmp_path):
    changed = config()
    changed["training"]["keep_checkpoints"] = 2
    run_pretrain(changed, corpus, tmp_path / "run")
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["latest", "step_00000009", "step_00000012"]
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step_00000012\n"
