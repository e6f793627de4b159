"""Two ranks under the deepspeed launcher train as one rank does, at every ZeRO stage."""

from __future__ import annotations

import numpy as np
import pytest
from runs import read_metrics, run_pretrain, small_config

STEPS = 20
MUON = {"type": "Muon", "params": {"lr": 3e-3, "weight_decay": 0.01}}
BY_TOKEN = {"granularity": "token", "keep_masked_tokens": True, "keep_near_masked": 1}
BY_TOKEN |= {"dense_warmup": 0.2, "dense_finish": 0.2}


def config(**changes):
    return small_config(
        model={"hidden_dropout": 0.0, "attention_dropout": 0.0},
        training={"max_steps": STEPS, "eval_interval": 0, "checkpoint_interval": 0},
        **changes,
    )


@pytest.fixture(scope="module")
def one_rank(corpus, tmp_path_factory):
    """Losses of one rank whose global batch is one micro-batch."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    run_pretrain(config(train_micro_batch_size_per_gpu=8), corpus, run_dir)
    return np.array(read_metrics(run_dir))


@pytest.mark.launcher
@pytest.mark.parametrize("stage", [pytest.param(stage, marks=pytest.mark.thorough) for stage in (0, 1, 3)] + [2])
def test_two_ranks_train_as_one_at_every_zero_stage(stage, corpus, one_rank, tmp_path):
    run_pretrain(config(zero_optimization={"stage": stage}), corpus, tmp_path / "run", ranks=2)
    losses = np.array(read_metrics(tmp_path / "run"))
    assert len(losses) == STEPS
    assert losses == pytest.approx(one_rank, rel=1e-5)
    kept = read_metrics(tmp_path / "run", "kept_blocks")
    assert min(kept) < 3, "no block was dropped, so the test proves nothing"


@pytest.fixture(scope="module")
def one_rank_by_token(corpus, tmp_path_factory):
    """Losses of one rank, where every block has its own tokens (False), and where all have the same ones (True)."""
    losses = {}
    for same_tokens in (False, True):
        run_dir = tmp_path_factory.mktemp(f"one_by_token_{same_tokens}") / "run"
        changes = {"progressive_layer_drop": {**BY_TOKEN, "same_tokens": same_tokens}, "optimizer": MUON}
        run_pretrain(config(train_micro_batch_size_per_gpu=8, **changes), corpus, run_dir)
        losses[same_tokens] = np.array(read_metrics(run_dir))
    return losses


@pytest.mark.launcher
@pytest.mark.thorough
@pytest.mark.parametrize(("stage", "same_tokens"), [(0, False), (1, False), (2, False), (3, False), (3, True)])
def test_two_ranks_with_muon_drop_the_tokens_that_one_rank_drops(
    stage, same_tokens, corpus, one_rank_by_token, tmp_path
):
    drop = {**BY_TOKEN, "same_tokens": same_tokens}
    changes = {"progressive_layer_drop": drop, "optimizer": MUON, "zero_optimization": {"stage": stage}}
    run_pretrain(config(**changes), corpus, tmp_path / "run", ranks=2)
    assert np.array(read_metrics(tmp_path / "run")) == pytest.approx(one_rank_by_token[same_tokens], rel=1e-5)
    kept = read_metrics(tmp_path / "run", "kept_blocks")
    assert kept == pytest.approx([3.0] * 4 + [2.0] * 12 + [3.0] * 4, abs=0.05)


@pytest.fixture(scope="module")
def one_rank_by_muon(corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("one_by_muon") / "run"
    run_pretrain(config(train_micro_batch_size_per_gpu=8, optimizer=MUON), corpus, run_dir)
    return np.array(read_metrics(run_dir))


@pytest.mark.launcher
@pytest.mark.thorough
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_muon_on_two_ranks_is_that_of_one_rank(stage, corpus, one_rank_by_muon, tmp_path):
    """Under dropping by batch, so that some blocks have no gradient in a step."""
    run_pretrain(config(optimizer=MUON, zero_optimization={"stage": stage}), corpus, tmp_path / "run", ranks=2)
    assert np.array(read_metrics(tmp_path / "run")) == pytest.approx(one_rank_by_muon, rel=1e-5)


@pytest.fixture(scope="module")
def one_rank_of_modernbert(corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("one_modern") / "run"
    run_pretrain(modernbert(train_micro_batch_size_per_gpu=8), corpus, run_dir)
    return np.array(read_metrics(run_dir))


def modernbert(**changes):
    """By token, so that positions are gathered, with local attention in two of three blocks."""
    run = config(progressive_layer_drop=BY_TOKEN, optimizer=MUON, **changes)
    run["model"] |= {"architecture": "modernbert", "local_attention": 8}
    return run


@pytest.mark.launcher
@pytest.mark.parametrize("stage", [pytest.param(stage, marks=pytest.mark.thorough) for stage in (0, 1, 2)] + [3])
def test_two_ranks_train_modernbert_as_one(stage, corpus, one_rank_of_modernbert, tmp_path):
    # At stage 3 even the smallest parameter is gathered by the hooks of its module's call.
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0} if stage == 3 else {"stage": stage}
    run_pretrain(modernbert(zero_optimization=zero), corpus, tmp_path / "run", ranks=2)
    assert np.array(read_metrics(tmp_path / "run")) == pytest.approx(one_rank_of_modernbert, rel=1e-5)


def test_accumulated_micro_batches_weigh_tokens_as_one_batch(corpus, one_rank, tmp_path):
    """Without gates, which differ between micro-steps, accumulation equals one large micro-batch."""
    off = {"progressive_layer_drop": {"enabled": False}}
    run_pretrain(config(train_micro_batch_size_per_gpu=8, **off), corpus, tmp_path / "whole")
    run_pretrain(config(train_micro_batch_size_per_gpu=2, **off), corpus, tmp_path / "parts")
    whole, parts = (np.array(read_metrics(tmp_path / name)) for name in ("whole", "parts"))
    assert parts == pytest.approx(whole, rel=1e-5)
    assert np.abs(whole - one_rank).max() > 1e-3, "layer dropping had no effect"


@pytest.mark.thorough
@pytest.mark.parametrize("stage", [0, 3])
def test_sample_granularity_trains_on_two_ranks(stage, corpus, tmp_path):
    changes = {"progressive_layer_drop": {"granularity": "sample"}, "zero_optimization": {"stage": stage}}
    run_pretrain(config(**changes), corpus, tmp_path / "run", ranks=2)
    assert np.isfinite(read_metrics(tmp_path / "run")).all()
    kept = np.array(read_metrics(tmp_path / "run", "kept_blocks"))
    assert kept == pytest.approx(np.full(STEPS, 2.0), abs=1e-9)  # 3 blocks × 4 rows, of which 8 are kept each time
