"""The blocks' matrix products in FP8, with torch's scaled products (Micikevicius et al., arXiv:2209.05433).

Forward, inputs and weight are rounded to e4m3 (4 bits of exponent, 3 of mantissa); backward, the upstream gradient is
rounded to e5m2. Each tensor has one scale, a power of two that brings its largest value to the top of the format's
range, computed from that tensor (dynamic scaling). So there is no state: nothing to save, and a resumed run repeats.
Weights, their gradients, and all that is not a product of a block keep their precision. Backward keeps the inputs in
FP8, half of their bytes in 16 bits.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

FORWARD_DTYPE, BACKWARD_DTYPE = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16
"""Widths must be multiples of it."""
ON_CPU = "BERT_PLD_FP8_ON_CPU"
"""Environment variable that allows FP8 on a CPU, for tests: torch computes the same products there, but slowly."""
_CAPABILITY = (8, 9)
_LARGEST_EXPONENT = 126.0


def check_fp8(device_type: str, backend: str, *widths: int) -> None:
    """Raise a ValueError of one line if FP8 products cannot run on this device, with this backend or these widths."""
    if backend == "compiled":
        raise ValueError("model.fp8: true with model.kernels 'compiled'; use 'triton' or 'reference'")
    if uneven := [width for width in widths if width % MULTIPLE]:
        raise ValueError(f"model.fp8: true with a width of {uneven[0]}; widths must be multiples of {MULTIPLE}")
    if device_type == "cuda":
        capability = torch.cuda.get_device_capability()
        if capability < _CAPABILITY:
            raise ValueError("model.fp8: true needs compute capability 8.9; this GPU has {}.{}".format(*capability))
    elif os.environ.get(ON_CPU, "0") in ("", "0"):
        raise ValueError(f"model.fp8: true needs an NVIDIA GPU of compute capability 8.9; the device is {device_type}")


def quantize(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale values by a power of two and round them to an FP8 format.

    Returns:
        The rounded values, in the same shape, and the factor that scales them back, fp32 []. NaN and infinities stay
        such. Nothing waits for the device.
    """
    largest = torch.linalg.vector_norm(values, torch.inf, dtype=torch.float32)
    exponent = torch.log2(torch.finfo(dtype).max / largest).floor_()
    exponent.clamp_(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    # A power of two leaves bf16 mantissas as they are; fp16 has too few exponents for it.
    wide = values if values.dtype is torch.bfloat16 else values.float()
    return (wide * torch.exp2(exponent).to(wide.dtype)).to(dtype), torch.exp2(-exponent)


def fp8_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Run `bert_pld.kernels.reference.linear` with operands in FP8: [..., I], [O, I], [O] → [..., O].

    Products are accumulated in fp32, and rounded once to the inputs' dtype, bf16 or fp16.
    """
    if not inputs.numel():
        return F.linear(inputs, weight, bias)
    out = _Fp8Linear.apply(inputs.flatten(0, -2), weight, bias)
    return out.view(*inputs.shape[:-1], -1)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, weight, bias):
        narrow, unscale = quantize(inputs, FORWARD_DTYPE)
        narrow_weight, unscale_weight = quantize(weight, FORWARD_DTYPE)
        # Its FP8 copy is not kept: under ZeRO 3 it would hold what the partitioning saves.
        ctx.save_for_backward(narrow, unscale, weight)
        ctx.has_bias = bias is not None
        return torch._scaled_mm(
            narrow,
            narrow_weight.t(),
            scale_a=unscale,
            scale_b=unscale_weight,
            bias=bias,
            out_dtype=inputs.dtype,
            use_fast_accum=True,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        narrow, unscale, weight = ctx.saved_tensors
        narrow_grad, unscale_grad = quantize(grad_out, BACKWARD_DTYPE)
        narrow_weight, unscale_weight = quantize(weight, FORWARD_DTYPE)
        grad_inputs = torch._scaled_mm(
            narrow_grad,
            _transposed(narrow_weight).t(),
            scale_a=unscale_grad,
            scale_b=unscale_weight,
            out_dtype=grad_out.dtype,
        )
        grad_weight = torch._scaled_mm(
            _transposed(narrow_grad),
            _transposed(narrow).t(),
            scale_a=unscale_grad,
            scale_b=unscale,
            out_dtype=weight.dtype,
        )
        return grad_inputs, grad_weight, grad_out.sum(0) if ctx.has_bias else None


def _transposed(matrix: Tensor) -> Tensor:
    """Return a contiguous transpose [m, n] → [n, m'], with zeros up to a multiple of 16 columns.

    A GPU multiplies FP8 along contiguous rows only.
    """
    rows, columns = matrix.shape
    padded = -(-rows // MULTIPLE) * MULTIPLE
    out = torch.empty(columns, padded, dtype=matrix.dtype, device=matrix.device)
    out[:, :rows].copy_(matrix.t())
    out.view(torch.uint8)[:, rows:].zero_()
    return out
