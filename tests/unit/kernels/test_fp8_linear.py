"""FP8 products against exact ones within the bounds of the formats, and where they are refused."""

from __future__ import annotations

import pytest
import torch
import triton
from recorded_operators import RecordOperators
from tiny_model import SIZES, make_batch

from bert_pld.config import ConfigError, load_config
from bert_pld.kernels import fp8_rounding, reference
from bert_pld.kernels.fp8_linear import (
    BACKWARD_DTYPE,
    FORWARD_DTYPE,
    ON_CPU,
    check_fp8,
    fp8_linear,
    quantize,
    round_matrix,
)
from bert_pld.model import BertForPreTraining, use_backend

ROUNDING = {FORWARD_DTYPE: 2.0**-4, BACKWARD_DTYPE: 2.0**-3}
"""Largest relative error of a normal number: half a unit of 3 and of 2 bits."""
SUBNORMAL = {FORWARD_DTYPE: 2.0**-10, BACKWARD_DTYPE: 2.0**-17}
"""Half the distance of the smallest numbers."""


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_quantized_values_are_within_the_format_s_rounding(dtype, source, size):
    torch.manual_seed(0)
    values = (torch.randn(64, 48) * size).to(source)
    narrow, unscale = quantize(values, dtype)
    back = narrow.double() * unscale.double()
    bound = ROUNDING[dtype] * values.double().abs() + SUBNORMAL[dtype] * unscale.double()
    assert ((back - values.double()).abs() <= bound).all()
    # The scale uses the range: the largest value is in the upper half of it.
    top = torch.finfo(dtype).max
    assert 0.45 * top <= narrow.float().abs().max() <= top
    assert torch.log2(unscale) == torch.log2(unscale).round()


def test_zeros_stay_zero_and_values_that_are_not_finite_stay_such():
    narrow, unscale = quantize(torch.zeros(4, 4, dtype=torch.bfloat16), FORWARD_DTYPE)
    assert not narrow.float().any()
    assert torch.isfinite(unscale)
    for wrong in (float("nan"), float("inf")):
        values = torch.tensor([1.0, wrong], dtype=torch.bfloat16)
        narrow, unscale = quantize(values, BACKWARD_DTYPE)
        assert not torch.isfinite(narrow.float() * unscale).all()


def skip_without_fp8(device):
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no FP8")


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", [(70, 48), (64, 160), (3, 16)])
def test_kernel_rounds_as_eager_torch(shape, dtype, transposed, narrow, device):
    skip_without_fp8(device)
    torch.manual_seed(0)
    values = (torch.randn(*shape) * 37).to(device, torch.bfloat16)
    expected, expected_turned, expected_unscale = round_matrix(values, dtype, narrow, transposed)
    actual, turned, unscale = fp8_rounding.round_matrix(values, dtype, narrow, transposed)
    assert torch.equal(unscale, expected_unscale)
    assert (turned is None) == (not transposed)
    if narrow:
        assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))
    if transposed:
        assert turned.shape == (shape[1], -(-shape[0] // 16) * 16)
        assert torch.equal(turned.view(torch.uint8), expected_turned.view(torch.uint8))


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
def test_kernel_keeps_zeros_and_shows_values_that_are_not_finite(device):
    skip_without_fp8(device)
    zeros, _, unscale = fp8_rounding.round_matrix(torch.zeros(16, 16, device=device), FORWARD_DTYPE, True, False)
    assert not zeros.float().any()
    assert torch.isfinite(unscale)
    for wrong in (float("nan"), float("inf")):
        values = torch.ones(16, 16, device=device)
        values[3, 5] = wrong
        narrow, _, unscale = fp8_rounding.round_matrix(values, FORWARD_DTYPE, True, False)
        assert not torch.isfinite(narrow.float() * unscale)[3, 5]


def dequantized(values, dtype):
    narrow, unscale = quantize(values, dtype)
    return narrow.double() * unscale.double()


@pytest.mark.parametrize("rounding", [round_matrix, fp8_rounding.round_matrix], ids=["eager", "kernel"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [33, 5])
def test_product_and_gradients_are_those_of_the_rounded_operands(dtype, rows, rounding, device):
    skip_without_fp8(device)
    torch.manual_seed(1)
    inputs, weight, bias = torch.randn(2, rows, 48), torch.randn(32, 48) / 7, torch.randn(32)
    operands = [one.to(device, dtype).requires_grad_() for one in (inputs, weight, bias)]
    upstream = torch.randn(2, rows, 32).to(device, dtype) * 1e-3
    out = fp8_linear(*operands, rounding)
    out.backward(upstream)

    x, w = (dequantized(one.detach(), FORWARD_DTYPE) for one in operands[:2])
    dy = dequantized(upstream, BACKWARD_DTYPE)
    expected = [x @ w.T + operands[2].detach().double(), dy @ w, dy.flatten(0, 1).T @ x.flatten(0, 1)]
    for actual, exact in zip((out, operands[0].grad, operands[1].grad), expected, strict=True):
        assert actual.dtype is dtype
        assert actual.shape == exact.shape
        assert torch.allclose(actual.double(), exact, rtol=2**-7, atol=2**-8 * exact.abs().max().item())
    assert torch.equal(operands[2].grad, upstream.flatten(0, 1).sum(0))


def test_error_against_bf16_is_within_the_bounds_of_the_formats():
    torch.manual_seed(2)
    inputs, weight = torch.randn(128, 256).bfloat16(), (torch.randn(64, 256) / 16).bfloat16()
    exact = inputs.double() @ weight.double().T
    error = (fp8_linear(inputs, weight, None).double() - exact).abs()
    largest = inputs.double().abs() @ weight.double().abs().T
    assert (error <= largest * (2 * ROUNDING[FORWARD_DTYPE] + 0.02)).all()
    # Errors of single products mostly cancel.
    assert error.square().mean().sqrt() < 0.04 * exact.square().mean().sqrt()


def test_no_rows_give_zero_gradients_of_the_right_shape():
    operands = [torch.zeros(0, 32), torch.randn(16, 32), torch.randn(16)]
    operands = [one.bfloat16().requires_grad_() for one in operands]
    fp8_linear(*operands).sum().backward()
    assert [one.grad.shape for one in operands] == [(0, 32), (16, 32), (16,)]
    assert not operands[1].grad.any()


def test_saved_inputs_take_one_byte_a_value():
    saved = []
    inputs = torch.randn(64, 32).bfloat16().requires_grad_()
    weight = torch.randn(16, 32).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        fp8_linear(inputs, weight, None)
    sizes = sorted(one.nbytes for one in saved if one is not weight)
    assert sizes[-1] == inputs.numel()


def model_of(**changes):
    model = {**SIZES, "next_sentence_prediction": True, "num_layers": 2, "initializer_range": 0.2, **changes}
    config = load_config(
        {"bf16": {"enabled": True}, "model": {**model, "hidden_dropout": 0.0, "attention_dropout": 0.0}}
    )
    torch.manual_seed(0)
    return BertForPreTraining(config.model).bfloat16()


@pytest.mark.parametrize("normalization", ["pre", "post"])
def test_blocks_alone_multiply_in_fp8_and_train_as_in_bf16(normalization, monkeypatch):
    monkeypatch.setenv(ON_CPU, "1")
    losses = {}
    for fp8 in (False, True):
        model = model_of(normalization=normalization, fp8=fp8)
        use_backend(model, "reference", "cpu")
        optimizer, batch = torch.optim.AdamW(model.parameters(), lr=3e-3), make_batch()
        losses[fp8] = []
        for _ in range(12):
            loss = model(**batch)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[fp8].append(loss.item())
    assert losses[True] != losses[False]
    assert losses[True][-1] < losses[True][0] - 0.5
    assert losses[True] == pytest.approx(losses[False], rel=0.1)
    assert all(block.linear is fp8_linear for block in model.encoder.blocks)


@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="kernels are interpreted where there is no GPU")
def test_fused_blocks_multiply_in_fp8(monkeypatch):
    monkeypatch.setenv(ON_CPU, "1")
    losses = {}
    for backend in ("reference", "triton"):
        model = model_of(fp8=True)
        use_backend(model, backend, "cpu")
        with RecordOperators() as recorded:
            losses[backend] = model(**make_batch())["loss"].item()
        products = [operator for operator, *_ in recorded.calls if operator is torch.ops.aten._scaled_mm.default]
        assert len(products) == 4 * len(model.encoder.blocks)
    assert losses["triton"] == pytest.approx(losses["reference"], rel=0.02)


def test_fp8_is_refused_in_one_line_where_it_cannot_run(monkeypatch):
    monkeypatch.delenv(ON_CPU, raising=False)
    with pytest.raises(ValueError, match=r"^model.fp8: true needs an NVIDIA GPU .* 8.9; the device is cpu$"):
        use_backend(model_of(fp8=True), "reference", "cpu")
    with pytest.raises(ValueError, match=r"^model.fp8: true with a width of 40; widths must be multiples of 16$"):
        check_fp8("cuda", "triton", 32, 40)
    with pytest.raises(ValueError, match="'compiled'; use 'triton' or 'reference'"):
        check_fp8("cuda", "compiled", 32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(ValueError, match=r"compute capability 8.9; this GPU has 8.0"):
        check_fp8("cuda", "triton", 32)
    with pytest.raises(ConfigError, match=r"model.fp8: true in fp32; enable bf16 or fp16"):
        load_config({"train_batch_size": 1, "model": {"fp8": True}})


def test_without_the_key_blocks_use_the_reference_s_product():
    model = model_of()
    use_backend(model, "reference", "cpu")
    assert all(block.linear is reference.linear for block in model.encoder.blocks)
