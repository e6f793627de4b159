"""bf16 losses are close to fp32's, and activation checkpointing changes no loss."""

from __future__ import annotations

import numpy as np
import pytest
from runs import read_metrics, run_pretrain, small_config


def losses(corpus, run_dir, **changes):
    changes = {"model": {"hidden_dropout": 0.0, "attention_dropout": 0.0, **changes.pop("model", {})}, **changes}
    run_pretrain(small_config(training={"eval_interval": 0, "checkpoint_interval": 0}, **changes), corpus, run_dir)
    return np.array(read_metrics(run_dir))


@pytest.fixture(scope="module")
def fp32(corpus, tmp_path_factory):
    return losses(corpus, tmp_path_factory.mktemp("fp32") / "run")


@pytest.mark.parametrize("stage", [1, 2])
def test_bf16_losses_are_close_to_fp32(stage, corpus, fp32, tmp_path):
    changes = {"bf16": {"enabled": True}, "zero_optimization": {"stage": stage}}
    bf16 = losses(corpus, tmp_path / "run", **changes)
    assert bf16 == pytest.approx(fp32, rel=0.02)
    assert (bf16 != fp32).any()


@pytest.mark.parametrize("stage", [0, 3])
def test_activation_checkpointing_changes_no_loss(stage, corpus, fp32, tmp_path):
    changes = {"model": {"activation_checkpointing": True}, "zero_optimization": {"stage": stage}}
    assert losses(corpus, tmp_path / "run", **changes) == pytest.approx(fp32, rel=1e-6)


def test_post_normalization_trains(corpus, tmp_path):
    series = losses(corpus, tmp_path / "run", model={"normalization": "post"})
    assert np.isfinite(series).all()
    assert series[-3:].mean() < series[:3].mean()
