"""Two ranks through the deepspeed launcher: the same training at every ZeRO stage, and as on one rank."""

from __future__ import annotations

import numpy as np
import pytest
from runs import read_metrics, run_pretrain, small_config

STEPS = 20


def config(**changes):
    return small_config(
        model={"hidden_dropout": 0.0, "attention_dropout": 0.0},
        training={"max_steps": STEPS, "eval_interval": 0, "checkpoint_interval": 0},
        **changes,
    )


@pytest.fixture(scope="module")
def one_rank(corpus, tmp_path_factory):
    """The loss series of one rank with the global batch in one micro-batch."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    run_pretrain(config(train_micro_batch_size_per_gpu=8), corpus, run_dir)
    return np.array(read_metrics(run_dir))


@pytest.mark.launcher
@pytest.mark.parametrize(
    "stage", [pytest.param(0, marks=pytest.mark.thorough), 1, pytest.param(2, marks=pytest.mark.thorough), 3]
)
def test_two_ranks_train_as_one_at_every_zero_stage(stage, corpus, one_rank, tmp_path):
    run_pretrain(config(zero_optimization={"stage": stage}), corpus, tmp_path / "run", ranks=2)
    losses = np.array(read_metrics(tmp_path / "run"))
    assert len(losses) == STEPS
    assert losses == pytest.approx(one_rank, rel=1e-5)
    kept = read_metrics(tmp_path / "run", "kept_blocks")
    assert min(kept) < 3, "no block was dropped: the test shows nothing"


@pytest.mark.launcher
def test_accumulation_weighs_tokens_as_one_batch(corpus, one_rank, tmp_path):
    """Without gates (which differ by micro-step), accumulating equals one large micro-batch."""
    off = {"progressive_layer_drop": {"enabled": False}}
    run_pretrain(config(train_micro_batch_size_per_gpu=8, **off), corpus, tmp_path / "whole")
    run_pretrain(config(train_micro_batch_size_per_gpu=2, **off), corpus, tmp_path / "parts")
    whole, parts = (np.array(read_metrics(tmp_path / name)) for name in ("whole", "parts"))
    assert parts == pytest.approx(whole, rel=1e-5)
    assert np.abs(whole - one_rank).max() > 1e-3, "dropping made no difference"


@pytest.mark.launcher
@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.thorough), 3])
def test_sample_granularity_trains_on_two_ranks(stage, corpus, tmp_path):
    changes = {"progressive_layer_drop": {"granularity": "sample"}, "zero_optimization": {"stage": stage}}
    run_pretrain(config(**changes), corpus, tmp_path / "run", ranks=2)
    assert np.isfinite(read_metrics(tmp_path / "run")).all()
    kept = np.array(read_metrics(tmp_path / "run", "kept_blocks"))
    assert kept == pytest.approx(np.full(STEPS, 2.0), abs=1e-9)  # (3·3 − 1)/4 of 4 rows: 8 block-rows each time
