"""A run in fp16 goes on after a step that its loss scaler skips, and ends if it skips all.

A CPU cannot train in fp16: the engine is one in bf16 that gets fp16's loss scaler.
"""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from runs import read_metrics, small_config

from bert_pld.checkpoint.writer import CheckpointWriter
from bert_pld.cluster.stopping import StepAgreement
from bert_pld.cluster.watchdog import Watchdog
from bert_pld.config import load_config
from bert_pld.data.nvidia_rows import open_rows
from bert_pld.data.order import BatchShare, Origin
from bert_pld.model import make_model
from bert_pld.training.divergence import DivergedError
from bert_pld.training.engine import make_engine
from bert_pld.training.loop import train
from bert_pld.training.metrics import Metrics
from bert_pld.training.prepare import resolve_config
from bert_pld.training.run import Run

pytestmark = pytest.mark.usefixtures("process_group")
STATIC = LossScaler(1)
AT_ITS_MINIMUM = DynamicLossScaler(
    init_scale=1, scale_window=1000, min_scale=1, delayed_shift=1, consecutive_hysteresis=False
)


def run_in_fp16(corpus, folder, scaler, bad_steps, stage=1, log_interval=5):
    """A run of 20 steps, in some of which the loss is not finite."""
    training = {"max_steps": 20, "log_interval": log_interval, "checkpoint_interval": 0}
    settings = small_config(bf16={"enabled": True}, zero_optimization={"stage": stage}, training=training)
    rows, device = open_rows(corpus, "train"), torch.device("cpu")
    config = resolve_config(load_config(settings), rows, 1, device)
    engine = make_engine(config, make_model(config.model))
    if stage:
        engine.optimizer.loss_scaler = scaler

    def damage(module, inputs, outputs):
        return {**outputs, "loss": outputs["loss"] * (torch.nan if engine.global_steps + 1 in bad_steps else 1.0)}

    engine.module.register_forward_hook(damage)
    rows.save_tokenizer(folder)
    config = dataclasses.replace(config, deepspeed={**config.deepspeed, "bf16": {}, "fp16": {"enabled": True}})
    return Run(
        config=config,
        output_dir=folder,
        training_rows=rows,
        validation_rows=None,
        batch_share=BatchShare(4, 2),
        origin=Origin(),
        engine=engine,
        metrics=Metrics(folder, config, device),
        checkpoints=CheckpointWriter(folder, engine, config, {}, None),
        preemption=SimpleNamespace(stop_requested=False),
        watchdog=Watchdog(),
        agreement=StepAgreement(None),
        lock=None,
        device=device,
    )


@pytest.mark.parametrize("stage", [0, 1])
def test_run_ends_if_a_static_loss_scale_skips_all_steps(stage, corpus, tmp_path):
    run = run_in_fp16(corpus, tmp_path, STATIC, bad_steps=range(4, 21), stage=stage)
    with pytest.raises(
        DivergedError, match=r"at step 4 \(noticed at step 15; the last 12 steps were skipped\); rows of"
    ):
        train(run)
    assert json.loads((tmp_path / "diverged.json").read_text()) == {"step": 4, "rank": 0}


def test_run_ends_if_a_step_overflows_at_the_lowest_loss_scale(corpus, tmp_path):
    run = run_in_fp16(corpus, tmp_path, AT_ITS_MINIMUM, bad_steps=[3])
    with pytest.raises(
        DivergedError, match=r"at step 3 \(fp16 overflows at the lowest loss scale\); rows of its first"
    ):
        train(run)
    assert json.loads((tmp_path / "diverged.json").read_text()) == {"step": 3, "rank": 0}


def test_run_goes_on_after_skipped_steps(corpus, tmp_path):
    run = run_in_fp16(corpus, tmp_path, STATIC, bad_steps=[*range(2, 11), *range(12, 15)], log_interval=1)
    assert train(run)
    assert run.engine.skipped_steps == 12
    assert [step for step, loss in enumerate(read_metrics(tmp_path), 1) if loss is None] == [*range(2, 11), 12, 13, 14]
