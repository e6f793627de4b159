"""What only a GPU can tell: mixed precision, compiled blocks, dropped blocks under ZeRO 3, exact resume."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from runs import read_metrics, run_pretrain, small_config

from bert_pld.train.checkpoint import list_checkpoints

pytestmark = pytest.mark.gpu

PRECISIONS = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 8}},
}


def losses(config, corpus, run_dir):
    run_pretrain(config, corpus, run_dir)
    return np.array(read_metrics(run_dir))


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("granularity", ["batch", "sample"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions_and_stages_follow_the_fp32_run(precision, granularity, stage, corpus, tmp_path):
    common = {
        "model": {"hidden_dropout": 0.0, "attention_dropout": 0.0, "kernels": "reference"},
        "progressive_layer_drop": {"granularity": granularity},
        "zero_optimization": {"stage": stage},
    }
    expected = losses(small_config(**{**common, "zero_optimization": {"stage": 0}}), corpus, tmp_path / "fp32")
    actual = losses(small_config(**common, **PRECISIONS[precision]), corpus, tmp_path / "run")
    assert actual == pytest.approx(expected, rel=1e-4 if precision == "fp32" else 0.03)


def test_compiled_blocks_train_as_the_reference(corpus, tmp_path):
    runs = {
        kernels: losses(
            small_config(model={"hidden_dropout": 0.0, "attention_dropout": 0.0, "kernels": kernels}),
            corpus,
            tmp_path / kernels,
        )
        for kernels in ("reference", "compiled")
    }
    assert runs["compiled"] == pytest.approx(runs["reference"], rel=1e-3)


def test_resumed_bf16_run_repeats_its_losses_bitwise(corpus, tmp_path):
    config = small_config(zero_optimization={"stage": 1}, bf16={"enabled": True}, model={"kernels": "reference"})
    run_dir = tmp_path / "run"
    whole = losses(config, corpus, run_dir).tolist()
    for checkpoint in list_checkpoints(run_dir / "checkpoints")[:2]:
        shutil.rmtree(checkpoint)
    assert losses(config, corpus, run_dir).tolist() == whole
