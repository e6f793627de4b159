"""A branch goes on from another run's checkpoint with its optimizer, under another schedule or on other data."""

from __future__ import annotations

import json
import shutil

import pytest
from runs import error_of, run_pretrain, small_config, write_corpus

from bert_pld.checkpoint.format import list_checkpoints

STEPS, STABLE = 12, 8
EXACT = ("step", "samples", "tokens", "loss", "mlm_loss", "lr", "theta", "kept_blocks", "grad_norm", "phase")


def config(max_steps=STEPS, decay=STEPS - STABLE, **blocks):
    """A stable rate after 2 steps, and a decay over the last ones; a checkpoint every 4 steps."""
    schedule = {"warmup_num_steps": 2, "decay_num_steps": decay}
    training = {"max_steps": max_steps, "eval_interval": 0, "checkpoint_interval": 4, "keep_checkpoints": 9}
    scheduler = {"type": "WarmupStableDecayLR", "params": schedule}
    dropping = {"temporal": "exponential", "gamma": 0.2}
    return small_config(training=training, scheduler=scheduler, progressive_layer_drop=dropping, **blocks)


def records(run_dir, after=0):
    """Return the exact metrics of the logging steps after a step, and the evaluation at the end."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: line.get(key, line.get(f"eval_{key}")) for key in EXACT} for line in lines if line["step"] > after]


def checkpoint(run_dir, step):
    return run_dir / "checkpoints" / f"step_{step:08d}"


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """A run with its decay from the beginning."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run_pretrain(config(), corpus, run_dir)
    return run_dir


@pytest.fixture(scope="module")
def stable(corpus, tmp_path_factory):
    """A run that ends before any decay."""
    run_dir = tmp_path_factory.mktemp("stable") / "run"
    run_pretrain(config(STABLE, decay=0), corpus, run_dir)
    return run_dir


def test_branch_that_changes_nothing_continues_bitwise_as_the_run_itself(corpus, whole, tmp_path):
    branch = tmp_path / "branch"
    done = run_pretrain(config(), corpus, branch, "--branch_from", str(checkpoint(whole, 4)))
    assert f"branching off after step 4 from checkpoint {checkpoint(whole, 4)}" in done.stdout
    assert "with its data from sample 32 on; changed: nothing" in done.stdout
    assert records(branch) == records(whole, after=4)


def test_decay_branch_of_a_stable_run_is_bitwise_the_run_with_that_decay(corpus, whole, stable, tmp_path):
    branch = tmp_path / "branch"
    done = run_pretrain(config(), corpus, branch, "--branch_from", str(stable))
    assert "changed: training.max_steps 8 → 12; scheduler.params.decay_num_steps 0 → 4" in done.stdout
    assert records(branch) == records(whole, after=STABLE)
    assert [one["phase"] for one in records(branch)[:4]] == ["decay"] * 4


def test_branch_on_longer_sequences_begins_with_their_first_sample_and_resumes_bitwise(stable, tmp_path):
    longer = write_corpus(tmp_path / "longer", train_rows=40, seq_length=48)
    changed = config(data={"seq_length": 48, "mask_probability": 0.3})
    changed["train_batch_size"] = changed["train_micro_batch_size_per_gpu"] = 2
    branch = tmp_path / "branch"
    command = changed, longer, branch, "--branch_from", str(stable)
    done = run_pretrain(*command)
    assert "with its data from the beginning" in done.stdout
    for change in ("data.seq_length 32 → 48", "data.mask_probability 0.15 → 0.3", "train_batch_size 8 → 2"):
        assert change in done.stdout
    first = records(branch)
    assert [one["samples"] for one in first[:4]] == [66, 68, 70, 72]
    state = json.loads((checkpoint(branch, STEPS) / "state.json").read_text())
    assert state["origin"] == {"step": 8, "samples": 64, "position": 0}

    changed["training"]["checkpoint_interval"] = 1
    shutil.rmtree(branch)
    run_pretrain(*command)
    assert records(branch) == first
    for kept in list_checkpoints(branch / "checkpoints")[:2]:
        shutil.rmtree(kept)
    assert "resuming after step 10" in run_pretrain(*command).stdout
    assert records(branch) == first


def test_branch_with_rotary_positions_grows_its_sequences_and_their_wavelengths(corpus, tmp_path):
    rotary = {
        "architecture": "modernbert",
        "max_position_embeddings": 32,
        "local_attention": 8,
        "global_rope_theta": 1e4,
    }
    parent, branch = tmp_path / "parent", tmp_path / "branch"
    run_pretrain(config(STABLE, decay=0, model=rotary), corpus, parent)
    grown = {**rotary, "max_position_embeddings": 48, "global_rope_theta": 1.6e5}
    longer = write_corpus(tmp_path / "longer", train_rows=40, seq_length=48)
    command = config(model=grown, data={"seq_length": 48}), longer, branch, "--branch_from", str(parent)
    done = run_pretrain(*command)
    assert "model.max_position_embeddings 32 → 48; model.global_rope_theta 10000 → 160000" in done.stdout
    saved = json.loads((checkpoint(branch, STEPS) / "config.json").read_text())
    assert saved["model"]["global_rope_theta"] == 160_000
    assert len(records(branch)) == STEPS - STABLE + 1


def test_rate_of_a_resumed_run_is_that_of_a_new_schedule_as_if_it_had_always_been(corpus, stable, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(stable, run_dir)
    other = {"type": "WarmupExpDecayLR", "params": {"warmup_max_lr": 0.01, "decay_rate": 0.5, "decay_step": 4}}
    run_pretrain({**config(), "scheduler": other}, corpus, run_dir)
    expected = [0.01 * 0.5 ** ((step - 1) / 4) for step in (8, 9, 10, 11)]
    assert [one["lr"] for one in records(run_dir, after=STABLE)[:4]] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"model": {"hidden_dropout": 0.2}}, [], "model.hidden_dropout is 0.1 in the checkpoint, 0.2 in this run"),
        (
            {"optimizer": {"type": "SGD", "params": {"lr": 0.1}}},
            [],
            "optimizer.type is 'adamw' in the checkpoint, 'sgd'",
        ),
        ({"training": {"max_steps": 8}}, [], "training.max_steps: 8; counts from the beginning of the first run"),
        ({}, ["--resume", "runs/other"], "given beside --resume runs/other; give one of the two"),
    ],
)
def test_branch_that_cannot_go_on_is_one_line(corpus, stable, tmp_path, changes, arguments, message):
    changed = config()
    for block, values in changes.items():
        changed[block] = {**changed[block], **values}
    if changes.get("optimizer") or changes.get("training"):
        changed["scheduler"] = {"type": "WarmupExpDecayLR", "params": {}}
    done = run_pretrain(changed, corpus, tmp_path / "run", "--branch_from", str(stable), *arguments, expect=1)
    assert message in error_of(done)
