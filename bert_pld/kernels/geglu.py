"""The gated feed-forward's inner step on packed projections, in one pass in each direction: y = gelu(a) ∘ b.

GELU is that of `bias_gelu.py`. Forward reads 2·I and writes I values a row; backward reads 3·I and writes 2·I, and
computes gelu(a) again instead of reading it. The specification is `bert_pld.kernels.reference.geglu`.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_pld.kernels.bias_gelu import gelu_and_slope
from bert_pld.kernels.tiles import Tile, ceil_div, element_tile


@triton.jit(do_not_specialize=["num_rows"])
def geglu_forward_kernel(
    values_ptr,  # [T, 2 * WIDTH]
    out_ptr,  # [T, WIDTH]
    num_rows,
    WIDTH: tl.constexpr,
    TANH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Each program handles one tile of the output."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    mask = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    inner_offsets = rows.to(tl.int64)[:, None] * (2 * WIDTH) + columns[None, :]
    inner = tl.load(values_ptr + inner_offsets, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(values_ptr + inner_offsets + WIDTH, mask=mask, other=0.0).to(tl.float32)
    activated, _ = gelu_and_slope(inner, TANH)
    offsets = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    tl.store(out_ptr + offsets, (activated * gate).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def geglu_backward_kernel(
    grad_out_ptr,  # [T, WIDTH]
    values_ptr,  # [T, 2 * WIDTH]
    grad_values_ptr,  # [T, 2 * WIDTH]
    num_rows,
    WIDTH: tl.constexpr,
    TANH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Each program handles one tile of the output's gradient."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    mask = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    inner_offsets = rows.to(tl.int64)[:, None] * (2 * WIDTH) + columns[None, :]
    inner = tl.load(values_ptr + inner_offsets, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(values_ptr + inner_offsets + WIDTH, mask=mask, other=0.0).to(tl.float32)
    offsets = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    grad = tl.load(grad_out_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    activated, slope = gelu_and_slope(inner, TANH)
    grad_inner, grad_gate = grad * gate * slope, grad * activated
    tl.store(grad_values_ptr + inner_offsets, grad_inner.to(grad_values_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_values_ptr + inner_offsets + WIDTH, grad_gate.to(grad_values_ptr.dtype.element_ty), mask=mask)


def geglu_forward(values: Tensor, activation: str, tile: Tile | None = None) -> Tensor:
    """Launch the forward kernel: [T, 2·I] → [T, I]; `tile` defaults to `element_tile(I)`."""
    num_rows, width = values.shape[0], values.shape[1] // 2
    tile = (tile or element_tile(width)).fitted(num_rows, values.device)
    out = torch.empty(num_rows, width, dtype=values.dtype, device=values.device)
    if num_rows:
        grid = (ceil_div(num_rows, tile.rows), ceil_div(width, tile.width))
        geglu_forward_kernel[grid](
            values, out, num_rows, TANH=activation == "gelu_tanh", **tile.launch_arguments(width)
        )
    return out


def geglu_backward(grad_out: Tensor, values: Tensor, activation: str, tile: Tile | None = None) -> Tensor:
    """Launch the backward kernel and return the gradient of values [T, 2·I]."""
    num_rows, width = grad_out.shape
    tile = (tile or element_tile(width)).fitted(num_rows, values.device)
    grad_values = torch.empty_like(values)
    if num_rows:
        grid = (ceil_div(num_rows, tile.rows), ceil_div(width, tile.width))
        geglu_backward_kernel[grid](
            grad_out.contiguous(),
            values,
            grad_values,
            num_rows,
            TANH=activation == "gelu_tanh",
            **tile.launch_arguments(width),
        )
    return grad_values


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, activation):
        ctx.save_for_backward(values)
        ctx.activation = activation
        return geglu_forward(values, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        return geglu_backward(grad_out, ctx.saved_tensors[0], ctx.activation), None


def geglu(values: Tensor, activation: Literal["gelu", "gelu_tanh"]) -> Tensor:
    """Run `bert_pld.kernels.reference.geglu` on [T, 2·I] as one kernel in each direction; differentiable once."""
    return _Geglu.apply(values.contiguous(), activation)
