"""The rotary kernel against its formula, in both directions."""

from __future__ import annotations

import functools

import pytest
import torch
from kernel_comparison import assert_close_as_eager, random_tensor

from bert_pld.kernels import reference_attention
from bert_pld.kernels import rotary as fused

pytestmark = pytest.mark.usefixtures("poisoned")
NAMES = ["query", "key", "value", "grad qkv"]


def placed(rows, heads, head_width, dtype, device, length=50):
    """Packed projections, upstream gradients, and the rest of the arguments; positions are in no order."""
    qkv = random_tensor(rows, 3 * heads * head_width, seed=0, dtype=dtype, device=device)
    upstream = [random_tensor(rows, heads, head_width, seed=1 + n, dtype=dtype, device=device) for n in range(3)]
    positions = torch.randint(0, length, (rows,), generator=torch.Generator().manual_seed(9), dtype=torch.int32)
    cosines, sines = reference_attention.rotary_angles(torch.arange(length), head_width, 10_000.0)
    others = {"num_heads": heads, "positions": positions, "cosines": cosines, "sines": sines}
    return qkv, upstream, {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in others.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "heads", "head_width"), [(1, 2, 16), (70, 3, 64), (33, 2, 20)])
def test_rotated_heads_and_their_gradient_equal_their_formula(rows, heads, head_width, dtype, device):
    qkv, upstream, others = placed(rows, heads, head_width, dtype, device)
    kernel, eager = (functools.partial(module.rotary_heads, **others) for module in (fused, reference_attention))
    assert_close_as_eager(kernel, eager, [qkv], upstream, NAMES)


def test_rows_beyond_one_tile_are_computed(device):
    qkv, upstream, others = placed(150, 2, 64, torch.float32, device)
    kernel, eager = (functools.partial(module.rotary_heads, **others) for module in (fused, reference_attention))
    assert_close_as_eager(kernel, eager, [qkv], upstream, NAMES)


def test_scores_depend_on_the_distance_alone(device):
    """The property that makes the positions relative: q_i · k_j of the same vectors at equal distances is equal."""
    vector = random_tensor(1, 3 * 64, seed=3, device=device).repeat(6, 1)
    positions = torch.tensor([0, 7, 20, 27, 93, 100], dtype=torch.int32, device=device)
    cosines, sines = (t.to(device) for t in reference_attention.rotary_angles(torch.arange(128), 64, 160_000.0))
    query, key, value = fused.rotary_heads(vector, 1, positions, cosines, sines)
    scores = [(query[i] * key[i + 1]).sum().item() for i in (0, 2, 4)]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-5)
    assert (query[0] * key[5]).sum().item() != pytest.approx(scores[0], rel=1e-2)
    assert torch.equal(value.flatten(1), vector[:, 128:])


def test_empty_input(device):
    qkv, upstream, others = placed(0, 2, 16, torch.float32, device)
    qkv.requires_grad_()
    torch.autograd.backward(fused.rotary_heads(qkv, **others), upstream)
    assert qkv.grad.shape == (0, 96)
