"""bf16 products in fp32, rounded once, on processors without bf16 instructions."""

from __future__ import annotations

import pytest
import torch

from bert_pld.kernels import reference as module


@pytest.mark.parametrize("has_units", [True, False])
def test_bf16_product_and_gradients_equal_fp32_within_rounding(has_units, monkeypatch):
    monkeypatch.setattr(module, "cpu_multiplies_bf16", lambda: has_units)
    torch.manual_seed(0)
    operands = [torch.randn(6, 33), torch.randn(17, 33), torch.randn(17)]
    upstream = torch.randn(6, 17)
    narrow = [operand.bfloat16().requires_grad_() for operand in operands]
    wide = [operand.detach().float().requires_grad_() for operand in narrow]
    out = module.linear(*narrow)
    out.backward(upstream.bfloat16())
    expected = module.linear(*wide)
    expected.backward(upstream.bfloat16().float())
    assert out.dtype is torch.bfloat16
    assert torch.allclose(out.float(), expected, rtol=2**-7, atol=2**-7)
    for ours, reference in zip(narrow, wide, strict=True):
        assert ours.grad.dtype is torch.bfloat16
        assert torch.allclose(ours.grad.float(), reference.grad, rtol=2**-6, atol=2**-6)


def test_widening_rounds_once(monkeypatch):
    monkeypatch.setattr(module, "cpu_multiplies_bf16", lambda: False)
    torch.manual_seed(1)
    inputs, weight = torch.randn(8, 300).bfloat16(), torch.randn(5, 300).bfloat16()
    exact = (inputs.double() @ weight.double().T).bfloat16()
    assert (module.linear(inputs, weight, None) == exact).float().mean() > 0.95


def test_fp32_is_unchanged():
    assert not module.needs_widening(torch.zeros(1))
    layer = module.Linear(3, 2)
    values = torch.randn(4, 3)
    assert torch.equal(layer(values), torch.nn.functional.linear(values, layer.weight, layer.bias))
