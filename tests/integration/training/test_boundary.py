"""The boundary of a step does what DeepSpeed's own does, in fewer operators and with one wait for the device."""

from __future__ import annotations

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from runs import small_config
from tiny_model import make_batch

from benchmarks.__main__ import build_parser
from benchmarks.operators import command as operators
from bert_pld.config import load_config
from bert_pld.model import BertForPreTraining
from bert_pld.training.boundary import REPLACED
from bert_pld.training.engine import make_engine

SGD = {"type": "SGD", "params": {"lr": 0.3}}  # Adam's update would not change with the clipping factor


pytestmark = pytest.mark.usefixtures("process_group")


def start(stage, boundary, clipping=0.5):
    config = load_config(
        small_config(
            train_micro_batch_size_per_gpu=8,
            zero_optimization={"stage": stage},
            bf16={"enabled": True},
            gradient_clipping=clipping,
            optimizer=SGD,
            model={"vocab_size": 64, "next_sentence_prediction": True},
            progressive_layer_drop={"enabled": False},
        )
    )
    torch.manual_seed(0)
    engine = make_engine(config, BertForPreTraining(config.model))
    if boundary == "DeepSpeed":
        for name in REPLACED:
            vars(engine.optimizer).pop(name, None)  # reveals the method of DeepSpeed's class
    return engine


def fp32_weights(optimizer):
    groups = getattr(optimizer, "fp32_groups", None) or [optimizer.single_partition_of_fp32_groups]
    return torch.cat([weights.detach().flatten() for group in groups for weights in group])


def train(engine, steps=4, damage_at=None):
    """Return the norm of each step's gradients and the optimizer's fp32 weights after each step."""
    norms, weights = [], []
    for step in range(steps):
        torch.manual_seed(step)
        engine.backward(engine(**make_batch(seed=step))["loss"])
        if step == damage_at:
            partitions = getattr(engine.optimizer, "averaged_gradients", None)
            damaged = partitions[0][0] if partitions else next(engine.module.parameters()).grad
            damaged.view(-1)[0] = torch.inf
        engine.step()
        norms.append(float(engine.get_global_grad_norm()))
        weights.append(fp32_weights(engine.optimizer))
    return norms, weights


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("clipping", [0.5, 0.0])
def test_norms_and_weights_are_those_of_deepspeed(stage, clipping):
    (norms, weights), (expected_norms, expected) = (
        train(start(stage, boundary, clipping)) for boundary in ("bert_pld", "DeepSpeed")
    )
    assert norms == pytest.approx(expected_norms, rel=1e-6)
    assert min(norms) > 0.5, "nothing was clipped, so the test proves nothing"
    moved = (weights[-1] - weights[0]).norm()
    assert moved > 0.1
    assert (weights[-1] - expected[-1]).norm() < 1e-4 * moved


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_are_divided_by_the_loss_scale(stage):
    weights = []
    for scale in (1.0, 8.0):
        engine = start(stage, "bert_pld")
        engine.optimizer.loss_scaler.cur_scale = scale
        norms, after = train(engine)
        weights.append(after[-1])
    assert max(norms) < 8 * min(norms)
    assert torch.allclose(*weights, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("stage", "clipping"), [(1, 0.0), (2, 4.0)])
def test_step_at_which_the_loss_scale_grows_is_as_large_as_any(stage, clipping):
    """The scaler of fp16, in bf16: it doubles before each division of the gradients, which have the scale before it."""
    weights, norms = [], []
    for window in (None, 1):
        engine = start(stage, "bert_pld", clipping)
        if window is not None:
            settings = {"min_scale": 1.0, "delayed_shift": 1, "consecutive_hysteresis": False}
            engine.optimizer.loss_scaler = DynamicLossScaler(8.0, window, **settings)
        before = fp32_weights(engine.optimizer)
        of_steps, after = train(engine, steps=3)
        norms.append(of_steps)
        weights.append(torch.stack(after) - before)
    assert engine.optimizer.loss_scale == 32.0  # It grew at the second and third step.
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert (weights[1] - weights[0]).norm() < 1e-2 * weights[0].norm()


@pytest.mark.parametrize("boundary", ["bert_pld", "DeepSpeed"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_step_with_an_infinite_gradient_is_skipped(stage, boundary):
    engine = start(stage, boundary)
    norms, weights = train(engine, damage_at=2)
    assert norms[2] == torch.inf
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[2], weights[3])
    assert engine.skipped_steps == 1


@pytest.mark.parametrize("optimizer", ["AdamW", "Muon"])
@pytest.mark.parametrize("stage", ["0", "1", "2"])
def test_boundary_has_few_operators_and_waits_once(stage, optimizer):
    options = build_parser("operators").parse_args(
        [f"--zero_stages={stage}", f"--optimizers={optimizer}", "--num_layers=4"]
    )
    before, eager, fused = operators.measure(options)["counts"]
    for ours in (eager, fused):
        assert ours["operators"]["boundary"] < 100
        assert ours["waits"] == 1
    assert before["operators"]["boundary"] > 600
    assert before["waits"] > 3
    assert fused["operators"]["blocks"] < eager["operators"]["blocks"]
    assert operators.report({"counts": [before, eager, fused]}).count("\n") == 5
