"""Rounding of a matrix to FP8, with the copy that backward's products need, in two passes over it.

The specification is `round_matrix` of `bert_pld.kernels.fp8_linear`. The first kernel finds the largest value. The
second one reads the values once more, and writes them rounded, as they are and transposed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bert_pld.kernels.fp8_linear import FORWARD_DTYPE, padded_rows
from bert_pld.kernels.tiles import ceil_div

__all__ = [
    "FORWARD_DTYPE",
    "largest_arguments",
    "largest_kernel",
    "round_matrix",
    "rounding_arguments",
    "rounding_kernel",
]
_TILE, _BLOCK, _BLOCKS, _WARPS = 64, 4096, 8, 8
_LARGEST_EXPONENT = tl.constexpr(126.0)


@triton.jit
def largest_kernel(
    values_ptr,  # [N]
    largest_ptr,  # fp32 [1], zero before the launch
    num_values,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Each program takes the largest absolute value of its part."""
    first = tl.program_id(0).to(tl.int64) * BLOCK * BLOCKS
    largest = tl.zeros([BLOCK], tl.float32)
    for block in range(BLOCKS):
        offsets = first + block * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(values_ptr + offsets, mask=offsets < num_values, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(values))
    tl.atomic_max(largest_ptr, tl.max(largest, axis=0))


@triton.jit
def rounding_kernel(
    values_ptr,  # [M, WIDTH]
    largest_ptr,  # fp32 [1]
    unscale_ptr,  # fp32 [1]
    narrow_ptr,  # [M, WIDTH]
    transposed_ptr,  # [WIDTH, padded_rows]
    num_rows,
    padded_rows,
    WIDTH: tl.constexpr,
    TOP: tl.constexpr,
    WRITE_NARROW: tl.constexpr,
    WRITE_TRANSPOSED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Each program handles one tile; the rows that pad the transpose are zeros."""
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    exponent = tl.minimum(tl.floor(tl.log2(TOP / tl.load(largest_ptr))), _LARGEST_EXPONENT)
    tl.store(unscale_ptr, tl.exp2(-exponent))
    inside = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    offsets = rows[:, None] * WIDTH + columns[None, :]
    values = tl.load(values_ptr + offsets, mask=inside, other=0.0).to(tl.float32) * tl.exp2(exponent)
    narrow = values.to(narrow_ptr.dtype.element_ty)
    if WRITE_NARROW:
        tl.store(narrow_ptr + offsets, narrow, mask=inside)
    if WRITE_TRANSPOSED:
        inside = (columns < WIDTH)[:, None] & (rows < padded_rows)[None, :]
        turned = columns.to(tl.int64)[:, None] * padded_rows + rows[None, :]
        tl.store(transposed_ptr + turned, tl.trans(narrow), mask=inside)


def round_matrix(
    values: Tensor, dtype: torch.dtype, narrow: bool, transposed: bool
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Run `bert_pld.kernels.fp8_linear.round_matrix` with two launches, on contiguous values."""
    rows, width = values.shape
    device, padded = values.device, padded_rows(rows)
    largest, unscale = torch.zeros(1, device=device), torch.empty((), device=device)
    largest_kernel[(ceil_div(values.numel(), _BLOCK * _BLOCKS),)](
        values, largest, values.numel(), **largest_arguments()
    )
    out = torch.empty(rows if narrow else 0, width, dtype=dtype, device=device)
    turned = torch.empty(width, padded if transposed else 0, dtype=dtype, device=device)
    rounding_kernel[(ceil_div(padded if transposed else rows, _TILE), ceil_div(width, _TILE))](
        values,
        largest,
        unscale,
        out,
        turned,
        rows,
        padded,
        WRITE_NARROW=narrow,
        WRITE_TRANSPOSED=transposed,
        **rounding_arguments(width, dtype),
    )
    return out if narrow else None, turned if transposed else None, unscale


def rounding_arguments(width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of a launch of `rounding_kernel` that depend on width and format."""
    return {"WIDTH": width, "TOP": torch.finfo(dtype).max, "TILE": _TILE, "num_warps": _WARPS}


def largest_arguments() -> dict[str, Any]:
    """Return the constants of a launch of `largest_kernel`."""
    return {"BLOCK": _BLOCK, "BLOCKS": _BLOCKS, "num_warps": _WARPS}
