"""Queries, keys and values of one product: gradients side by side and the bias's sum, against the formula."""

from __future__ import annotations

import pytest
import torch
from kernel_comparison import assert_close_as_eager, random_tensor
from recorded_operators import RecordOperators

from bert_pld.kernels import reference_attention
from bert_pld.kernels import split_qkv as fused

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.usefixtures("poisoned")


def check(rows, width, dtype, device, used=(True, True, True)):
    inputs = [random_tensor(*shape, seed=len(shape), dtype=dtype) for shape in ((rows, 3 * width), (3 * width,))]
    upstream = [random_tensor(rows, width, seed=5 + i, dtype=dtype) if used[i] else None for i in range(3)]
    assert_close_as_eager(
        fused.split_qkv,
        reference_attention.split_qkv,
        [tensor.to(device) for tensor in inputs],
        [None if tensor is None else tensor.to(device) for tensor in upstream],
        ["query", "key", "value", "grad qkv", "grad bias"],
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [32, 96, 768])
@pytest.mark.parametrize("rows", [0, 1, 13])
def test_gradients_equal_the_formula(rows, width, dtype, device):
    check(rows, width, dtype, device)


@pytest.mark.usefixtures("small_tiles")
def test_program_that_loops_over_several_tiles_sums_all_of_them(device):
    check(37, 300, torch.float32, device)


def test_unused_parts_have_zero_gradients(device):
    check(5, 96, torch.float32, device, used=(False, True, False))


def test_gradients_of_heads_in_another_order_are_written_in_place(device):
    """A gradient that is no matrix of rows, as attention without a fused kernel gives, is copied first."""
    query, key, value = (random_tensor(3, 7, 32, seed=seed, device=device).transpose(0, 1) for seed in range(3))
    grad_qkv, grad_bias = fused.split_qkv_backward(*(part.flatten(1) for part in (query, key, value)))
    expected = torch.cat([part.reshape(7, 96) for part in (query, key, value)], dim=1)
    assert torch.equal(grad_qkv, expected)
    assert torch.allclose(grad_bias, expected.sum(0), atol=1e-5)


def test_no_copy_and_no_sum_of_the_whole_matrix_remain(device):
    qkv, bias = (random_tensor(*shape, seed=1, device=device).requires_grad_() for shape in ((40, 96), (96,)))
    with RecordOperators() as recorded:
        torch.autograd.backward(fused.split_qkv(qkv, bias), [torch.ones(40, 32, device=device)] * 3)
    names = {str(operator) for operator, *_ in recorded.calls}
    assert not {name for name in names if any(word in name for word in ("cat", "stack"))}
    sums = [arguments[0].shape for operator, arguments, _ in recorded.calls if "sum" in str(operator)]
    assert all(shape[0] < 40 for shape in sums)
