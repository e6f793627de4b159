"""Queries, keys and values of one product; backward writes their gradients side by side and sums them over rows.

Forward makes three views. Backward would copy the three gradients into one matrix, for the product's backward, and then
read this matrix again for the gradient of the product's bias; here one kernel does both. The specification is
`bert_pld.kernels.reference_attention.split_qkv`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_pld.kernels.tiles import Tile, ceil_div, column_tile


@triton.jit(do_not_specialize=["num_rows"])
def split_qkv_backward_kernel(
    grad_query_ptr,  # [T, WIDTH]
    grad_key_ptr,  # [T, WIDTH]
    grad_value_ptr,  # [T, WIDTH]
    grad_qkv_ptr,  # [T, 3 · WIDTH]
    partial_ptr,  # fp32 [programs, 3 · WIDTH]
    num_rows,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Each program loops over the rows of its columns and stores its partial sums over rows."""
    program = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    in_width = columns < WIDTH
    query_sum = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
    key_sum = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
    value_sum = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
    for first in range(program * BLOCK_ROWS, num_rows, tl.num_programs(0) * BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        mask = (rows < num_rows)[:, None] & in_width[None, :]
        offsets = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        out = grad_qkv_ptr + rows.to(tl.int64)[:, None] * (3 * WIDTH) + columns[None, :]
        query = tl.load(grad_query_ptr + offsets, mask=mask, other=0.0)
        key = tl.load(grad_key_ptr + offsets, mask=mask, other=0.0)
        value = tl.load(grad_value_ptr + offsets, mask=mask, other=0.0)
        tl.store(out, query, mask=mask)
        tl.store(out + WIDTH, key, mask=mask)
        tl.store(out + 2 * WIDTH, value, mask=mask)
        query_sum += query.to(tl.float32)
        key_sum += key.to(tl.float32)
        value_sum += value.to(tl.float32)
    partial = partial_ptr + program * 3 * WIDTH + columns
    tl.store(partial, tl.sum(query_sum, axis=0), mask=in_width)
    tl.store(partial + WIDTH, tl.sum(key_sum, axis=0), mask=in_width)
    tl.store(partial + 2 * WIDTH, tl.sum(value_sum, axis=0), mask=in_width)


def split_qkv_backward(
    grad_query: Tensor, grad_key: Tensor, grad_value: Tensor, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """Launch the kernel: three times [T, H] → [T, 3·H] and, in fp32, its sum over rows [3·H].

    `tile` defaults to `column_tile(H)`.
    """
    num_rows, width = grad_query.shape
    device = grad_query.device
    tile = (tile or column_tile(width)).fitted(num_rows, device)
    grad_qkv = torch.empty(num_rows, 3 * width, dtype=grad_query.dtype, device=device)
    across = ceil_div(width, tile.width)
    programs = ceil_div(tile.programs(num_rows * across, device), across)
    if not programs:
        return grad_qkv, torch.zeros(3 * width, dtype=torch.float32, device=device)
    partial = torch.empty(programs, 3 * width, dtype=torch.float32, device=device)
    split_qkv_backward_kernel[(programs, across)](
        grad_query.contiguous(),
        grad_key.contiguous(),
        grad_value.contiguous(),
        grad_qkv,
        partial,
        num_rows,
        **tile.launch_arguments(width),
    )
    return grad_qkv, partial.sum(0)


class _SplitQkv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, bias):
        ctx.bias_dtype = bias.dtype
        return qkv.chunk(3, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_query, grad_key, grad_value):
        grad_qkv, grad_bias = split_qkv_backward(grad_query, grad_key, grad_value)
        return grad_qkv, grad_bias.to(ctx.bias_dtype)


def split_qkv(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run `reference_attention.split_qkv` without a copy, its backward as one kernel; differentiable once."""
    return _SplitQkv.apply(qkv, bias)
