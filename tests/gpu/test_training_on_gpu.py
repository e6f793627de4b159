"""What only a GPU can tell: mixed precision, compiled and fused blocks, dropped blocks under ZeRO 3, exact resume."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from runs import read_metrics, run_pretrain, small_config

from bert_pld.checkpoint.format import list_checkpoints

pytestmark = pytest.mark.gpu

PRECISIONS = {"fp32": {}, "bf16": {"bf16": {"enabled": True}}}
PRECISIONS["fp16"] = {"fp16": {"enabled": True, "initial_scale_power": 8}}
MUON_BY_TOKEN = {
    "optimizer": {"type": "Muon", "params": {"lr": 0.001}},
    "progressive_layer_drop": {"granularity": "token", "keep_masked_tokens": True, "keep_near_masked": 1},
}
NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}


def losses(config, corpus, run_dir):
    run_pretrain(config, corpus, run_dir)
    return np.array(read_metrics(run_dir))


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("granularity", ["batch", "sample"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions_and_stages_follow_the_fp32_run(precision, granularity, stage, corpus, tmp_path):
    common = {"model": {**NO_DROPOUT, "kernels": "reference"}, "progressive_layer_drop": {"granularity": granularity}}
    zero = {"zero_optimization": {"stage": stage}}
    expected = losses(small_config(**common, zero_optimization={"stage": 0}), corpus, tmp_path / "fp32")
    actual = losses(small_config(**common, **zero, **PRECISIONS[precision]), corpus, tmp_path / "run")
    assert actual == pytest.approx(expected, rel=1e-4 if precision == "fp32" else 0.03)


@pytest.mark.parametrize("backend", ["compiled", "triton"])
def test_faster_backends_train_as_the_reference(backend, corpus, tmp_path):
    configs = {kernels: small_config(model={**NO_DROPOUT, "kernels": kernels}) for kernels in ("reference", backend)}
    runs = {kernels: losses(config, corpus, tmp_path / kernels) for kernels, config in configs.items()}
    assert runs[backend] == pytest.approx(runs["reference"], rel=1e-3)


@pytest.mark.parametrize(
    ("precision", "granularity", "stage"),
    [
        *(("bf16", granularity, stage) for granularity in ("sample", "token") for stage in (1, 3)),
        *(("fp16", "batch", 1), ("fp16", "sample", 3), ("bf16", "batch", 3)),
    ],
)
def test_fused_blocks_in_16_bits_follow_the_fp32_run(precision, granularity, stage, corpus, tmp_path):
    common = {"model": NO_DROPOUT, "progressive_layer_drop": {"granularity": granularity}}
    expected = losses(small_config(**common), corpus, tmp_path / "fp32")
    zero = {"zero_optimization": {"stage": stage}}
    actual = losses(small_config(**common, **zero, **PRECISIONS[precision]), corpus, tmp_path / "run")
    assert actual == pytest.approx(expected, rel=0.03)


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs FP8")
@pytest.mark.parametrize("kernels", ["triton", "reference"])
def test_fused_blocks_and_eager_ones_in_fp8_follow_the_fp32_run(kernels, corpus, tmp_path):
    pld = {"progressive_layer_drop": {"granularity": "token"}}
    expected = losses(small_config(model=NO_DROPOUT, **pld), corpus, tmp_path / "fp32")
    model = {**NO_DROPOUT, "fp8": True, "kernels": kernels}
    actual = losses(small_config(model=model, **pld, **PRECISIONS["bf16"]), corpus, tmp_path / "run")
    assert actual == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("kernels", "precision", "changes"),
    [("reference", "bf16", {}), ("triton", "bf16", MUON_BY_TOKEN), ("triton", "fp16", {})],
    ids=["reference-bf16", "triton-bf16-muon-token", "triton-fp16"],
)
def test_resumed_run_repeats_its_losses_bitwise(kernels, precision, changes, corpus, tmp_path):
    changes = {"zero_optimization": {"stage": 1}, "model": {"kernels": kernels}, **PRECISIONS[precision], **changes}
    config = small_config(**changes)
    run_dir = tmp_path / "run"
    whole = losses(config, corpus, run_dir).tolist()
    for checkpoint in list_checkpoints(run_dir / "checkpoints")[:2]:
        shutil.rmtree(checkpoint)
    assert losses(config, corpus, run_dir).tolist() == whole
