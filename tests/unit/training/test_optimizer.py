"""Our optimizers match their formulas and torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bert_pld.config import ConfigError
from bert_pld.training.optimizer import (
    build_optimizer,
    canonical_optimizer,
    check_optimizer_params,
    parameter_groups,
)


def test_vectors_have_no_weight_decay():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    decayed, plain = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 4)]
    assert plain["weight_decay"] == 0.0
    assert len(plain["params"]) == 3


def adam_formula(start, gradients, lr, betas, eps, decay):
    """Adam with decoupled weight decay and without bias correction, as in the published code."""
    x, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for g in gradients:
        x = x * (1 - lr * decay)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        x = x - lr * m / (v.sqrt() + eps)
    return x


def test_adam_without_bias_correction_matches_the_formula():
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(5, 7))
    gradients = torch.randn(6, 5, 7)
    start = parameter.detach().clone()
    params = {"lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 0.1, "bias_correction": False}
    optimizer = build_optimizer({"type": "Adam", "params": params}, [{"params": [parameter]}])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    expected = adam_formula(start.double(), gradients.double(), 0.01, (0.9, 0.99), 1e-6, 0.1)
    assert torch.allclose(parameter.double(), expected, rtol=1e-5, atol=1e-7)


def test_adam_without_bias_correction_goes_on_with_a_counter_that_counts_from_one():
    """DeepSpeed's Adam on the host saves such a counter."""
    moved = []
    for counted in (None, 100.0):
        parameter = nn.Parameter(torch.ones(3))
        block = {"type": "Adam", "params": {"lr": 1.0, "bias_correction": False}}
        optimizer = build_optimizer(block, [{"params": [parameter]}])
        state = {"exp_avg": torch.full((3,), 0.2), "exp_avg_sq": torch.full((3,), 0.04)}
        optimizer.state[parameter] = {"step": torch.tensor(counted or 1_000_000.0), **state}
        for _ in range(2):
            parameter.grad = torch.full((3,), 0.1)
            optimizer.step()
        moved.append(parameter.detach().clone())
    assert torch.equal(*moved)
    assert moved[0][0] < 0  # two steps of about 1; with bias correction at step 100, of about 0.3


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_adam_w_mode_changes_adam_alone_as_in_deepspeed(name):
    params = {"weight_decay": 0.1, "adam_w_mode": False}
    optimizer = build_optimizer({"type": name, "params": params}, [{"params": [nn.Parameter(torch.ones(2))]}])
    assert type(optimizer) is getattr(torch.optim, name)


def test_adamw_is_torch_s_fused_one():
    optimizer = build_optimizer({"type": "AdamW", "params": {"lr": 1e-3}}, [{"params": [nn.Parameter(torch.ones(2))]}])
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["fused"]


@pytest.mark.thorough
@pytest.mark.parametrize("params", [{}, {"bias_correction": False}, {"adam_w_mode": False}])
def test_deepspeed_s_adam_on_the_host_makes_the_steps_of_torch_s(params):
    """Thorough, because compiling it takes minutes."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    block = {"type": "Adam", "params": {"lr": 0.01, "weight_decay": 0.1, **params}}
    torch.manual_seed(0)
    weights, gradients = torch.randn(64), torch.randn(5, 64)
    results = []
    for cls in (None, DeepSpeedCPUAdam):
        parameter = nn.Parameter(weights.clone())
        optimizer = build_optimizer(block, [{"params": [parameter], "weight_decay": 0.1}], cls)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        results.append(parameter.detach())
    assert torch.allclose(*results, rtol=1e-5, atol=5e-6)


def test_unknown_optimizer_parameter_is_refused():
    with pytest.raises(ConfigError, match="optimizer.params.momentum: unknown key for AdamW; valid: lr"):
        build_optimizer({"type": "AdamW", "params": {"momentum": 0.9}}, [{"params": [nn.Parameter(torch.ones(2))]}])


@pytest.mark.parametrize(
    ("name", "stage", "message"),
    [
        ("Adamm", 0, "optimizer.type: 'Adamm' is unknown, did you mean 'Adam'"),
        ("OneBitAdam", 0, "OneBitAdam is not supported, because checkpoints cannot hold its compression errors"),
        ("zerooneadam", 1, "ZeroOneAdam is not supported"),
        ("Adafactor", 0, "checkpoints cannot hold its factored moments"),
        ("LBFGS", 0, "evaluates the loss several times"),
        ("Lamb", 1, "needs the norm of each whole parameter, which ZeRO divides over ranks"),
        ("Adagrad", 2, "DeepSpeed gives Adagrad one group of parameters"),
        ("Lion", 0, "DeepSpeed's Lion requires a GPU"),
    ],
)
def test_optimizer_that_cannot_be_resumed_is_refused(name, stage, message):
    with pytest.raises(ConfigError, match=message) as error:
        canonical_optimizer(name, stage, "cpu")
    assert "\n" not in str(error.value)


def test_names_of_optimizers_are_found_in_any_case():
    assert [canonical_optimizer(name, 1, "cpu") for name in ("adamw", "ADAM", "muon", "sgd")] == [
        "AdamW", "Adam", "Muon", "SGD",
    ]  # fmt: skip
    assert canonical_optimizer("lamb", 0, "cuda") == "Lamb"


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("SGD", {"lr": 0.1, "differentiable": True}, "optimizer.params.differentiable: unknown key for SGD"),
        ("SGD", {"lr": 0.1, "foreach": True, "fused": True}, "optimizer.params: "),
        ("AdamW", {"lr": [0.001]}, r"optimizer.params.lr: \[0.001\]; must be one number, without brackets"),
    ],
)
def test_parameters_that_torch_would_stumble_over_are_one_line(name, params, message):
    with pytest.raises(ConfigError, match=message):
        check_optimizer_params(name, params)


def test_whole_numbers_are_a_valid_pair_of_betas():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = build_optimizer({"type": "AdamW", "params": {"betas": [0, 0.95]}}, [{"params": [parameter]}])
    assert optimizer.param_groups[0]["betas"] == (0.0, 0.95)
