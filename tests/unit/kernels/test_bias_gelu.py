"""The bias_gelu kernel against its formula."""

from __future__ import annotations

import functools

import pytest
import torch
from kernel_comparison import assert_close_as_eager, random_tensor

from bert_pld.kernels import bias_gelu as fused
from bert_pld.kernels import reference

pytestmark = pytest.mark.usefixtures("poisoned")


def check_bias_gelu(rows, width, dtype, activation, device):
    values, bias, upstream = (
        random_tensor(*shape, seed=seed, dtype=dtype, device=device)
        for seed, shape in enumerate([(rows, width), (width,), (rows, width)])
    )
    kernel, eager = (functools.partial(module.bias_gelu, activation=activation) for module in (fused, reference))
    assert_close_as_eager(kernel, eager, [3 * values, bias], [upstream], ["out", "grad values", "grad bias"])


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 96), (13, 768), (1, 1000), (37, 1024)])
def test_bias_gelu_and_its_gradients_equal_their_formula(rows, width, dtype, activation, device):
    check_bias_gelu(rows, width, dtype, activation, device)


@pytest.mark.usefixtures("small_tiles")
def test_program_that_loops_over_several_tiles_sums_all_of_them(device):
    check_bias_gelu(23, 1100, torch.float32, "gelu", device)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gelu_far_from_zero_is_the_identity_or_zero(activation, device):
    values = torch.tensor([[-60.0, -12.0, 12.0, 60.0]], device=device, requires_grad=True)
    out = fused.bias_gelu(values, torch.zeros(4, device=device), activation)
    out.backward(torch.ones_like(out))
    assert torch.allclose(out.detach().cpu(), torch.tensor([[0.0, 0.0, 12.0, 60.0]]), atol=1e-12)
    assert torch.allclose(values.grad.cpu(), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), atol=1e-12)


def test_slope_of_gelu_tanh_is_accurate_where_its_sigmoid_is_near_one(device):
    u = torch.linspace(2.0, 12.0, 4096, dtype=torch.float64)
    values = u.float().to(device)[None].requires_grad_()
    fused.bias_gelu(values, torch.zeros(4096, device=device), "gelu_tanh").sum().backward()
    exact = u.float().double().requires_grad_()
    torch.nn.functional.gelu(exact, approximate="tanh").sum().backward()
    assert (
        values.grad.double().cpu() - exact.grad
    ).abs().max() < 5e-7  # with the difference 1 − σ: 2e-6, on a GPU more


def test_empty_input(device):
    bias = torch.randn(96, device=device, requires_grad=True)
    fused.bias_gelu(torch.empty(0, 96, device=device), bias, "gelu").backward(torch.empty(0, 96, device=device))
    assert torch.equal(bias.grad, torch.zeros_like(bias))
