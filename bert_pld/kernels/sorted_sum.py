"""Sum of the rows that have the same id, in a fixed order: the gradient of an embedding table.

The ids are sorted once. Each program sums a chunk of rows in the sorted order, and stores a sum where the id changes.
An id whose rows are in several chunks has a partial sum in each; a second kernel adds these. Reductions are in fp32,
and the same input gives the same bits, which atomic additions would not.
"""

# ruff: noqa: RUF005 – Triton compiles no starred expressions
# mypy: disable-error-code="assignment, var-annotated"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bert_pld.kernels.tiles import ceil_div, power_of_two_from

CHUNK = 64
"""Rows of a program; an id with many rows, such as [MASK], has as many partial sums as it has chunks."""
GROUP = 8
"""Rows of a chunk that are loaded at the same time."""
PARTS = 16
"""Partial sums of an id that are loaded at the same time."""
_MOST_COLUMNS = 256


@triton.jit(do_not_specialize=["num_rows"])
def sum_chunks_kernel(
    rows_ptr,  # [T, WIDTH]
    sorted_ids_ptr,  # int32 [T]
    order_ptr,  # int64 [T]
    table_ptr,  # [V, WIDTH]
    partial_ptr,  # fp32 [chunks, 2, WIDTH]
    num_rows,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Each program sums one chunk's rows by id, in some columns.

    An id that is in this chunk alone goes to the table, one that began before to the chunk's first partial sum, and one
    that begins here and goes on to its second.
    """
    chunk = tl.program_id(0)
    first = chunk * CHUNK
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    in_width = columns < WIDTH
    partial = partial_ptr + chunk.to(tl.int64) * (2 * WIDTH) + columns
    own = tl.load(sorted_ids_ptr + first)
    began_before = own == tl.load(sorted_ids_ptr + first - 1, mask=first > 0, other=-1)
    ends = began_before
    total = tl.zeros([BLOCK_WIDTH], tl.float32)
    for begin in range(first, first + CHUNK, GROUP):
        loaded = ()
        for offset in tl.static_range(GROUP):
            is_row = begin + offset < num_rows
            row = tl.load(order_ptr + begin + offset, mask=is_row, other=0)
            loaded = loaded + (tl.load(rows_ptr + row * WIDTH + columns, mask=in_width & is_row, other=0.0),)
        for offset in tl.static_range(GROUP):
            after = begin + offset + 1
            following = tl.load(sorted_ids_ptr + after, mask=after < num_rows, other=-1)
            total += loaded[offset].to(tl.float32)
            ends = own != following
            target = table_ptr + own.to(tl.int64) * WIDTH + columns
            is_whole = ends & (began_before == 0)
            tl.store(target, total.to(table_ptr.dtype.element_ty), mask=in_width & is_whole)
            tl.store(partial, total, mask=in_width & ends & began_before)
            total = tl.where(ends, 0.0, total)
            began_before = began_before & (ends == 0)
            own = following
    goes_on = (own >= 0) & (ends == 0)
    tl.store(partial + tl.where(began_before, 0, WIDTH), total, mask=in_width & goes_on)


@triton.jit(do_not_specialize=["num_rows"])
def join_chunks_kernel(
    partial_ptr,  # fp32 [chunks, 2, WIDTH]
    sorted_ids_ptr,  # int32 [T]
    table_ptr,  # [V, WIDTH]
    num_rows,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Each program whose chunk has an id that begins there and goes on adds the id's partial sums."""
    chunk = tl.program_id(0)
    first, after = chunk * CHUNK, chunk * CHUNK + CHUNK
    own = tl.load(sorted_ids_ptr + after - 1, mask=after < num_rows, other=-1)
    if (own < 0) | (tl.load(sorted_ids_ptr + after, mask=after < num_rows, other=-2) != own):
        return
    if tl.load(sorted_ids_ptr + first - 1, mask=first > 0, other=-1) == own:
        return
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    in_width = columns < WIDTH
    total = tl.zeros([PARTS, BLOCK_WIDTH], tl.float32)
    next_chunk = chunk + 1
    goes_on = True
    while goes_on:
        chunks = next_chunk + tl.arange(0, PARTS)
        has_part = tl.load(sorted_ids_ptr + chunks * CHUNK, mask=chunks * CHUNK < num_rows, other=-1) == own
        parts = partial_ptr + chunks.to(tl.int64)[:, None] * (2 * WIDTH) + columns[None, :]
        total += tl.load(parts, mask=has_part[:, None] & in_width[None, :], other=0.0)
        next_chunk += PARTS
        goes_on = tl.load(sorted_ids_ptr + next_chunk * CHUNK, mask=next_chunk * CHUNK < num_rows, other=-1) == own
    begun = tl.load(partial_ptr + (chunk.to(tl.int64) * 2 + 1) * WIDTH + columns, mask=in_width, other=0.0)
    result = (begun + tl.sum(total, axis=0)).to(table_ptr.dtype.element_ty)
    tl.store(table_ptr + own.to(tl.int64) * WIDTH + columns, result, mask=in_width)


def launch_arguments(width: int) -> dict[str, int]:
    """Return the arguments of both kernels that depend on the width."""
    return {"WIDTH": width, "CHUNK": CHUNK, "BLOCK_WIDTH": min(max(power_of_two_from(width), 32), _MOST_COLUMNS)}


def chunk_arguments() -> dict[str, int]:
    """Return the other constants of `sum_chunks_kernel`."""
    return {"GROUP": GROUP, "num_warps": 1}


def join_arguments() -> dict[str, int]:
    """Return the other constants of `join_chunks_kernel`."""
    return {"PARTS": PARTS, "num_warps": 4}


def sum_rows_by_id(rows: Tensor, ids: Tensor, table_rows: int) -> Tensor:
    """Return the sum of the rows [T, W] of each id, int32 [T]: [V, W] in their dtype, zeros where there are none."""
    num_rows, width = rows.shape
    table = torch.zeros(table_rows, width, dtype=rows.dtype, device=rows.device)
    if not num_rows:
        return table
    # Equal ids keep their order, or the sum would depend on the sort.
    sorted_ids, order = ids.sort(stable=True)
    sizes, chunks = launch_arguments(width), ceil_div(num_rows, CHUNK)
    partial = torch.empty(chunks, 2, width, dtype=torch.float32, device=rows.device)
    grid = chunks, ceil_div(width, sizes["BLOCK_WIDTH"])
    sum_chunks_kernel[grid](rows, sorted_ids, order, table, partial, num_rows, **sizes, **chunk_arguments())
    join_chunks_kernel[grid](partial, sorted_ids, table, num_rows, **sizes, **join_arguments())
    return table
