"""The reference operations against formulas, dropout's statistics, and the choice of the backend."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from recorded_operators import RecordOperators

from bert_pld import kernels
from bert_pld.kernels import reference, reference_attention, select_backend
from bert_pld.kernels.dropout import dropout, dropped_levels


def test_attention_on_no_rows_runs_no_attention_kernel_and_has_a_gradient():
    qkv = torch.zeros(0, 8, 24, requires_grad=True)
    with RecordOperators() as operators:
        out = reference_attention.self_attention(qkv, 2, None, 0.1)
    assert out.shape == (0, 8, 8)
    assert all(operator.is_view for operator, *_ in operators.calls)
    out.backward(torch.zeros_like(out))
    assert qkv.grad.shape == qkv.shape


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_has_the_keep_rate_and_scale_and_repeats_with_the_seed(probability):
    torch.manual_seed(0)
    out = dropout(torch.ones(1001, 999), probability)
    kept = out != 0
    sigma = (probability * (1 - probability) / out.numel()) ** 0.5
    assert kept.float().mean().item() == pytest.approx(1 - probability, abs=5 * sigma)
    assert out[kept].unique().numel() == 1
    assert out.max().item() == pytest.approx(1 / (1 - probability), rel=2e-4)
    torch.manual_seed(0)
    assert torch.equal(dropout(torch.ones(1001, 999), probability), out)


def test_dropout_in_bf16_has_the_scale_of_the_formula_and_not_a_rounded_one():
    torch.manual_seed(0)
    values = (torch.rand(64, 64) + 1).bfloat16().requires_grad_()
    out = dropout(values, 0.1)
    kept = out != 0
    scale = 2**16 / (2**16 - 6554)
    assert torch.equal(out[kept], (values[kept].double() * scale).bfloat16())
    out.sum().backward()
    assert values.grad[kept].unique().tolist() == [torch.tensor(scale).bfloat16().item()]


def test_dropout_just_below_one_keeps_some_elements():
    probability = 1 - 2**-20
    assert dropped_levels(probability) == 2**16 - 1
    torch.manual_seed(0)
    out = dropout(torch.ones(1000, 1000), probability)
    assert out.unique().tolist() == [0.0, 2.0**16]


def test_dropout_decisions_that_share_an_integer_are_independent():
    torch.manual_seed(1)
    kept = (dropout(torch.ones(250_000, 4), 0.3) != 0).float()
    off_diagonal = torch.corrcoef(kept.T) - torch.eye(4)
    assert off_diagonal.abs().max() < 5 / 250_000**0.5


def test_dropout_s_gradient_has_the_mask_of_its_output():
    torch.manual_seed(2)
    values = torch.randn(33, 7, requires_grad=True)
    out = dropout(values, 0.4)
    upstream = torch.randn(33, 7)
    out.backward(upstream)
    factor = torch.where(out != 0, out.detach() / values.detach(), 0.0)
    assert torch.allclose(values.grad, upstream * factor, atol=1e-6)


def test_dropout_of_zero_returns_its_input():
    values = torch.randn(3)
    assert dropout(values, 0.0) is values


def test_scaled_residual_equals_its_formula():
    torch.manual_seed(3)
    inner, weight, bias, residual = torch.randn(5, 6), torch.randn(4, 6), torch.randn(4), torch.randn(5, 4)
    expected = residual + 1.7 * (inner @ weight.T + bias)
    for scale in (1.7, torch.tensor(1.7)):
        out = reference.linear_dropout_scale_residual(inner, weight, bias, residual, 0.0, scale)
        assert torch.allclose(out, expected, atol=1e-5)


def test_attention_with_dropout_is_attention_on_average():
    torch.manual_seed(4)
    qkv = torch.randn(2, 6, 24)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    exact = reference_attention.self_attention(qkv, 2, mask, 0.0)
    mean = sum(reference_attention.self_attention(qkv, 2, mask, 0.2) for _ in range(4000)) / 4000
    assert torch.allclose(mean, exact, atol=0.06)
    heads = qkv.view(2, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
    scores = heads[0] @ heads[1].transpose(-1, -2) / 2.0
    weights = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    assert torch.allclose(exact, (weights @ heads[2]).transpose(1, 2).reshape(2, 6, 8), atol=1e-5)


def attend_in_fp32_and_bf16(length, mask=None):
    """Outputs and gradients: [fp32's, bf16's] of each."""
    torch.manual_seed(5)
    wide = torch.randn(2, length, 96).bfloat16().float().requires_grad_()
    narrow = wide.detach().bfloat16().requires_grad_()
    upstream = torch.randn(2, length, 32).bfloat16()
    outputs = [reference_attention.self_attention(qkv, 4, mask, 0.0) for qkv in (wide, narrow)]
    outputs[0].backward(upstream.float())
    outputs[1].backward(upstream)
    return outputs, [wide.grad, narrow.grad]


def test_bf16_attention_of_long_sequences_on_a_cpu_is_fp32_attention_rounded_once():
    for exact, rounded in attend_in_fp32_and_bf16(300):
        assert torch.equal(rounded, exact.bfloat16())


@pytest.mark.parametrize("mask", [None, torch.arange(16) < torch.tensor([[16], [9]])], ids=["full", "padded"])
def test_bf16_attention_of_short_sequences_on_a_cpu_differs_by_its_rounding(mask):
    for exact, rounded in attend_in_fp32_and_bf16(16, mask):
        assert rounded.dtype is torch.bfloat16
        assert ((rounded.float() - exact).norm() / exact.norm()).item() < 8e-3


@pytest.mark.parametrize("pairs", [False, True], ids=["tokens", "pairs"])
def test_bf16_attention_on_a_cpu_has_the_bits_of_filled_scores(pairs):
    tokens = torch.arange(32) < torch.tensor([[32], [9], [1]])
    mask = (tokens[:, :, None] & tokens[:, None, :]) | torch.eye(32, dtype=torch.bool) if pairs else tokens
    torch.manual_seed(6)
    heads = [torch.randn(3, 32, 2, 8).bfloat16().requires_grad_() for _ in range(3)]
    attended = reference_attention.attend(*heads, mask, dropout=0.0)

    query, key, value = (part.transpose(1, 2) for part in heads)
    scores = (query @ key.transpose(-1, -2) * 8**-0.5).masked_fill(
        ~(mask[:, None] if pairs else mask[:, None, None, :]), -torch.inf
    )
    expected = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    assert torch.equal(attended, expected)
    gradient = torch.randn_like(expected)
    got, wanted = (torch.autograd.grad(output, heads, gradient) for output in (attended, expected))
    assert all(map(torch.equal, got, wanted))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("length", [1, 13])
def test_attention_in_rows_shorter_than_a_vector_equals_its_formula(dtype, tolerance, length):
    torch.manual_seed(7)
    mask = torch.arange(length) < torch.tensor([[length], [(length + 1) // 2]])
    heads = [torch.randn(2, length, 3, 8).to(dtype).requires_grad_() for _ in range(3)]
    gradient = torch.randn(2, length, 24).to(dtype)
    attended = reference_attention.attend(*heads, mask, dropout=0.0)
    query, key, value = exact = [head.detach().double().requires_grad_() for head in heads]
    scores = torch.einsum("bqnd,bknd->bnqk", query, key) / 8**0.5
    weights = scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1)
    expected = torch.einsum("bnqk,bknd->bqnd", weights, value).flatten(2)
    gradients = torch.autograd.grad(attended, heads, gradient)
    expected_gradients = torch.autograd.grad(expected, exact, gradient.double())
    for got, wanted in zip((attended, *gradients), (expected, *expected_gradients), strict=True):
        assert got.dtype is dtype
        assert (got - wanted).norm() <= tolerance * max(1.0, wanted.norm())


def test_gelu_variants_and_summed_loss():
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    for name, approximate in (("gelu", "none"), ("gelu_tanh", "tanh")):
        expected = F.gelu(x @ weight.T + bias, approximate=approximate)
        assert torch.allclose(reference.bias_gelu(x @ weight.T, bias, name), expected, atol=1e-6)
    labels = torch.randint(0, 5, (3,))
    loss, _ = reference.linear_cross_entropy_sum(x, weight, bias, labels)
    expected = F.cross_entropy(x @ weight.T + bias, labels, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert reference.linear_cross_entropy_sum(x[:0], weight, bias, labels[:0])[0].item() == 0.0


def test_unavailable_backend_is_rejected_with_the_reason(monkeypatch):
    assert select_backend("auto", "cpu", 768) == "reference"
    assert select_backend("reference", "cuda", 768) == "reference"
    with pytest.raises(ValueError, match="'tritn'; must be one of reference, compiled, triton, auto"):
        select_backend("tritn", "cpu", 768)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="'triton' requires an NVIDIA GPU, and the device is cpu; use 'auto' or"):
        select_backend("triton", "cpu", 768)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert select_backend("triton", "cpu", 768) == "triton"
    with pytest.raises(ValueError, match="a hidden_size of at most 8192, and it is 16384"):
        select_backend("triton", "cpu", 16384)


@pytest.mark.parametrize(
    ("capability", "installed", "expected", "reason"),
    [
        ((9, 0), True, "triton", None),
        ((7, 0), True, "compiled", "capability 8.0 or newer, and this one has 7.0"),
        ((9, 0), False, "reference", "package triton, which is not installed"),
    ],
)
def test_auto_on_a_gpu_chooses_by_compute_capability(capability, installed, expected, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: object() if installed else None)
    assert select_backend("auto", "cuda", 768) == expected
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            select_backend("triton", "cuda", 768)
