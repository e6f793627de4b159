"""Muon against torch's own, against its formula, and beside AdamW in one optimizer."""

from __future__ import annotations

import types

import pytest
import torch
from tiny_model import fixed_gates, make_batch, make_model
from torch import nn

from bert_pld.config import ConfigError
from bert_pld.training.muon import orthogonalize
from bert_pld.training.optimizer import block_matrices, build_optimizer, parameter_groups


def plain_iteration(matrix, steps=5):
    """The published iteration, one matrix at a time, in fp64."""
    x = matrix.double() / matrix.double().norm()
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5)])
def test_orthogonalize_equals_the_plain_iteration_and_flattens_the_spectrum(shape):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(4, *shape, generator=generator)
    result = orthogonalize(matrices)
    expected = torch.stack([plain_iteration(matrix) for matrix in matrices])
    assert torch.allclose(result.double(), expected, rtol=1e-5, atol=1e-5)
    singular = torch.linalg.svdvals(result)
    assert singular.min() > 0.6
    assert singular.max() < 1.25
    assert torch.equal(orthogonalize(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


def make_optimizer(model, **params):
    """Build Muon as a run does, attached to a model without DeepSpeed: whole parameters on one rank."""
    block = {"type": "Muon", "params": {"lr": 2e-3, "weight_decay": 0.1, **params}}
    optimizer = build_optimizer(block, parameter_groups(model, 0.1, muon=True))
    engine = types.SimpleNamespace(module=model, optimizer=optimizer, device=torch.device("cpu"))
    optimizer.attach(engine, block_matrices(model))
    return optimizer


def set_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_matrices_move_as_with_torch_s_muon_and_the_rest_as_with_adamw(monkeypatch):
    """With q, k and v apart. Torch's iterates in bf16, whose rounding hides errors, so it gets fp32 here."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    model, other = make_model(num_layers=2), make_model(num_layers=2)
    optimizer = make_optimizer(model, muon_lr=6e-3)
    split = {}
    for name, count in block_matrices(other).items():
        parts = dict(other.named_parameters())[name].detach().chunk(count)
        split[name] = [nn.Parameter(part.clone()) for part in parts]
    muon = torch.optim.Muon(
        [part for parts in split.values() for part in parts],
        lr=6e-3, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    rest = {name: parameter for name, parameter in other.named_parameters() if name not in split}
    decayed = [p for p in rest.values() if p.dim() >= 2]
    plain = [p for p in rest.values() if p.dim() < 2]
    adam = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr=2e-3, weight_decay=0.1)
    for seed in range(4):
        set_gradients(model, seed)
        set_gradients(other, seed)
        for name, parts in split.items():
            gradient = dict(other.named_parameters())[name].grad
            for part, part_gradient in zip(parts, gradient.chunk(len(parts)), strict=True):
                part.grad = part_gradient.clone()
        for one in (optimizer, muon, adam):
            one.step()
    assert len(split) == 2 * 4
    for name, parameter in model.named_parameters():
        expected = torch.cat(split[name]).data if name in split else rest[name]
        assert torch.allclose(parameter, expected, rtol=1e-5, atol=1e-5), name


def test_update_is_the_formula():
    model = make_model(num_layers=1)
    name = "encoder.blocks.0.ffn_up_weight"
    weight = dict(model.named_parameters())[name]
    expected, momentum = weight.detach().double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    optimizer = make_optimizer(model, momentum=0.9)
    for seed in range(3):
        set_gradients(model, seed)
        gradient = weight.grad.double()
        momentum = 0.9 * momentum + 0.1 * gradient
        update = plain_iteration(0.1 * gradient + 0.9 * momentum)
        expected -= 2e-3 * 0.1 * expected
        expected -= 2e-3 * 0.2 * max(weight.shape) ** 0.5 * update
        optimizer.step()
    assert torch.allclose(weight.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("as_zeros", [False, True], ids=["no gradient", "zero gradient"])
def test_block_without_gradient_does_not_move_and_keeps_its_momentum(as_zeros):
    model = make_model(num_layers=2)
    optimizer = make_optimizer(model)
    names = [name for name in block_matrices(model) if name.startswith("encoder.blocks.1.")]
    parameters, momenta = dict(model.named_parameters()), []
    for kept in ([1, 1], [1, 0]):
        model.zero_grad(set_to_none=True)
        model(**make_batch(), gates=fixed_gates(kept))["loss"].backward()
        if as_zeros:
            for parameter in parameters.values():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        before = {name: parameters[name].detach().clone() for name in names}
        optimizer.step()
        momenta.append([optimizer.state[parameters[name]]["momentum_buffer"].clone() for name in names])
        moved = [not torch.equal(before[name], parameters[name]) for name in names]
        assert moved == [bool(kept[1])] * 4
    assert all(torch.equal(first, second) for first, second in zip(momenta[0], momenta[1], strict=True))
    assert all(momentum.abs().max() > 0 for momentum in momenta[0])


def test_states_are_momentum_for_matrices_and_two_moments_elsewhere():
    model = make_model(num_layers=1)
    optimizer = make_optimizer(model)
    set_gradients(model, 0)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = {"momentum_buffer"} if name in block_matrices(model) else {"step", "exp_avg", "exp_avg_sq"}
        assert set(optimizer.state[parameter]) == expected, name


def test_state_loads_and_a_closure_gives_the_loss():
    model = make_model(num_layers=1)
    optimizer = make_optimizer(model)
    set_gradients(model, 0)
    optimizer.step()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.load_state_dict(optimizer.state_dict())

    def closure():
        set_gradients(model, 1)
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"mometum": 0.9}, "optimizer.params.mometum: unknown key for Muon, did you mean 'momentum'"),
        ({"momentum": 1.0}, r"optimizer.params.momentum: 1.0; must be in \[0, 1\)"),
        ({"adam_lr": 0}, "optimizer.params.adam_lr: 0; must be > 0"),
        ({"lr": 0}, "optimizer.params.lr: 0; must be > 0"),
        ({"momentum": [0.9]}, r"optimizer.params.momentum: \[0.9\]; must be one number, without brackets"),
        ({"ns_steps": 0}, "optimizer.params.ns_steps: 0; must be >= 1"),
    ],
)
def test_wrong_parameters_of_muon_are_one_line(params, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(make_model(num_layers=1), **params)
