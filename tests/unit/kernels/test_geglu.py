"""The geglu kernel against its formula."""

from __future__ import annotations

import functools

import pytest
import torch
from kernel_comparison import assert_close_as_eager, random_tensor

from bert_pld.kernels import geglu as fused
from bert_pld.kernels import reference

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 48), (13, 1152), (37, 1000)])
def test_geglu_and_its_gradient_equal_their_formula(rows, width, dtype, activation, device):
    values, upstream = (
        random_tensor(rows, size, seed=seed, dtype=dtype, device=device) for seed, size in enumerate((2 * width, width))
    )
    kernel, eager = (functools.partial(module.geglu, activation=activation) for module in (fused, reference))
    assert_close_as_eager(kernel, eager, [2 * values], [upstream], ["out", "grad values"])


@pytest.mark.usefixtures("small_tiles")
def test_rows_beyond_one_tile_are_computed(device):
    values, upstream = (random_tensor(23, size, seed=1, device=device) for size in (2200, 1100))
    kernel, eager = (functools.partial(module.geglu, activation="gelu") for module in (fused, reference))
    assert_close_as_eager(kernel, eager, [values], [upstream], ["out", "grad values"])


def test_empty_input(device):
    values = torch.zeros(0, 96, device=device, requires_grad=True)
    out = fused.geglu(values, "gelu")
    assert out.shape == (0, 48)
    out.backward(torch.zeros(0, 48, device=device))
    assert values.grad.shape == (0, 96)
