"""Training with the fused kernels (interpreted) has the losses of the eager operations, at every ZeRO stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from runs import read_metrics, run_pretrain, small_config

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests interpreted kernels")

NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}


def losses(corpus, run_dir, kernels, *, steps, stage=0, ranks=1, granularity="batch", **model):
    config = small_config(
        train_batch_size=4,
        train_micro_batch_size_per_gpu=4 // ranks,
        model={"kernels": kernels, **NO_DROPOUT, **model},
        # At stage 3 even the smallest parameter is gathered.
        zero_optimization={"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})},
        progressive_layer_drop={"granularity": granularity},
        training={"max_steps": steps, "eval_interval": 0, "checkpoint_interval": 0, "log_interval": 1},
    )
    run_pretrain(config, corpus, run_dir, ranks=ranks)
    return np.array(read_metrics(run_dir))


@pytest.mark.parametrize("granularity", ["batch", pytest.param("sample", marks=pytest.mark.thorough)])
def test_fused_run_of_thirty_steps_has_the_losses_of_the_eager_run(granularity, corpus, tmp_path):
    expected = losses(corpus, tmp_path / "reference", "reference", steps=30, granularity=granularity)
    actual = losses(corpus, tmp_path / "triton", "triton", steps=30, granularity=granularity)
    assert expected[:5].mean() > expected[-5:].mean()  # it learns
    assert actual == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=pytest.mark.thorough) for stage in (1, 2)), 3])
def test_two_fused_ranks_have_the_losses_of_one_eager_rank_at_every_zero_stage(stage, corpus, tmp_path):
    expected = losses(corpus, tmp_path / "one", "reference", steps=6)
    actual = losses(corpus, tmp_path / "two", "triton", steps=6, stage=stage, ranks=2)
    assert actual == pytest.approx(expected, rel=1e-4)


def test_zero_3_trains_if_only_one_rank_has_padding(corpus, tmp_path):
    """Ranks that call different modules would wait for each other until the stall timeout ends the run."""
    config = small_config(
        train_batch_size=2,
        train_micro_batch_size_per_gpu=1,
        model={"kernels": "triton", **NO_DROPOUT},
        zero_optimization={"stage": 3, "stage3_param_persistence_threshold": 0},
        training={"max_steps": 20, "eval_interval": 0, "checkpoint_interval": 0, "stall_timeout": 240},
    )
    run_pretrain(config, corpus, tmp_path / "run", ranks=2)
    assert len(read_metrics(tmp_path / "run")) == 20


def test_fused_post_norm_blocks_with_activation_checkpointing_have_the_eager_losses(corpus, tmp_path):
    options = {"normalization": "post", "activation_checkpointing": True}
    expected = losses(corpus, tmp_path / "one", "reference", steps=4, granularity="sample", **options)
    actual = losses(corpus, tmp_path / "two", "triton", steps=4, granularity="sample", **options)
    assert actual == pytest.approx(expected, rel=1e-4)
