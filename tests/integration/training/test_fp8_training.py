"""Runs with `model.fp8` on a CPU, where torch computes the same products as on a GPU."""

from __future__ import annotations

import pytest
from runs import read_metrics, run_pretrain, small_config

from bert_pld.kernels.fp8_linear import ON_CPU


def test_partitioned_parameters_train_as_whole_ones_with_dropped_blocks(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv(ON_CPU, "1")
    losses = {}
    for stage in (1, 3):
        model = {"fp8": True, "hidden_dropout": 0.0, "attention_dropout": 0.0}
        config = small_config(bf16={"enabled": True}, model=model, zero_optimization={"stage": stage})
        run_pretrain(config, corpus, tmp_path / str(stage))
        losses[stage] = read_metrics(tmp_path / str(stage))
    assert losses[3] == pytest.approx(losses[1], rel=2e-3)
    assert losses[1][-1] < losses[1][0]
