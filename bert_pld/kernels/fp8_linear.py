"""The blocks' matrix products in FP8, with torch's scaled products (Micikevicius et al., arXiv:2209.05433).

Forward, inputs and weight are rounded to e4m3 (4 bits of exponent, 3 of mantissa); backward, the upstream gradient is
rounded to e5m2. Each tensor has one scale, a power of two that brings its largest value to the top of the format's
range, computed from that tensor (dynamic scaling). So there is no state: nothing to save, and a resumed run repeats.
Weights, their gradients, and all that is not a product of a block keep their precision. Backward keeps the inputs in
FP8, half of their bytes in 16 bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable

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
        The rounded values, in the same shape, and the factor that scales them back, fp32 []. Nothing waits for the
        device.
    """
    largest = torch.linalg.vector_norm(values, torch.inf, dtype=torch.float32)
    # If the largest value is infinite, the scale is 0, and the result NaN.
    exponent = torch.log2(torch.finfo(dtype).max / largest).floor_().clamp_(max=_LARGEST_EXPONENT)
    # A power of two leaves bf16 mantissas as they are; fp16 has too few exponents for it.
    wide = values if values.dtype is torch.bfloat16 else values.float()
    return (wide * torch.exp2(exponent).to(wide.dtype)).to(dtype), torch.exp2(-exponent)


def round_matrix(
    values: Tensor, dtype: torch.dtype, narrow: bool, transposed: bool
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Round values [M, N] to an FP8 format, in eager torch.

    A GPU multiplies FP8 along contiguous rows only, in multiples of 16, so products along M need a transposed copy.

    Returns:
        FP8 [M, N] if `narrow` is wanted; FP8 [N, M'] if `transposed` is wanted, with zeros up to the next multiple of
        16; and the factor that scales both back, fp32 [].
    """
    rounded, unscale = quantize(values, dtype)
    if not transposed:
        return rounded, None, unscale
    rows, columns = values.shape
    turned = torch.zeros(columns, padded_rows(rows), dtype=torch.uint8, device=values.device)
    turned[:, :rows] = rounded.t().view(torch.uint8)
    return rounded if narrow else None, turned.view(dtype), unscale


def padded_rows(rows: int) -> int:
    """Return the next multiple of 16."""
    return -(-rows // MULTIPLE) * MULTIPLE


Rounding = Callable[[Tensor, torch.dtype, bool, bool], tuple[Tensor | None, Tensor | None, Tensor]]


def fp8_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, rounding: Rounding = round_matrix) -> Tensor:
    """Run `bert_pld.kernels.reference.linear` with operands in FP8: [..., I], [O, I], [O] → [..., O].

    Products are accumulated in fp32, and rounded once to the inputs' dtype, bf16 or fp16. `rounding` is `round_matrix`,
    or a faster implementation of it.
    """
    if not inputs.numel():
        return F.linear(inputs, weight, bias)
    out = _Fp8Linear.apply(inputs.flatten(0, -2), weight, bias, rounding)
    return out.view(*inputs.shape[:-1], -1)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, weight, bias, rounding):
        narrow, turned, unscale = rounding(inputs.contiguous(), FORWARD_DTYPE, True, ctx.needs_input_grad[1])
        narrow_weight, _, unscale_weight = rounding(weight, FORWARD_DTYPE, True, False)
        # The weight's FP8 copy is not kept: under ZeRO 3 it would hold what the partitioning saves.
        ctx.save_for_backward(turned, unscale, weight)
        ctx.has_bias, ctx.rounding = bias is not None, rounding
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
        turned, unscale, weight = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        wants_inputs, wants_weight, wants_bias, _ = ctx.needs_input_grad
        narrow_grad, turned_grad, unscale_grad = ctx.rounding(grad_out, BACKWARD_DTYPE, wants_inputs, wants_weight)
        grad_inputs = grad_weight = None
        if wants_inputs:
            _, turned_weight, unscale_weight = ctx.rounding(weight, FORWARD_DTYPE, False, True)
            grad_inputs = torch._scaled_mm(
                narrow_grad, turned_weight.t(), scale_a=unscale_grad, scale_b=unscale_weight, out_dtype=grad_out.dtype
            )
        if wants_weight:
            grad_weight = torch._scaled_mm(
                turned_grad, turned.t(), scale_a=unscale_grad, scale_b=unscale, out_dtype=weight.dtype
            )
        return grad_inputs, grad_weight, grad_out.sum(0) if ctx.has_bias and wants_bias else None, None
