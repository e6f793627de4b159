"""The forward kernel of `add_norm`, and the function that launches it on plain tensors."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bert_pld.kernels import TRITON_MAX_WIDTH
from bert_pld.kernels.dropout import NO_DROPOUT, dropped_levels
from bert_pld.kernels.joins import read_words, words_of
from bert_pld.kernels.reference import Join, RowMap
from bert_pld.kernels.tiles import Tile, ceil_div, keep_tile, row_tile

VARYING = ["num_rows", "dropped_levels"]
"""Arguments that change from call to call: special values (1, multiples of 16) must not trigger a compilation."""
ROW_MAPS = ["branch_rows_ptr", "norm_rows_ptr"]
"""Pointers to rows of one matrix: their alignment depends on the number of tokens and must not trigger one either."""


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=ROW_MAPS)
def add_norm_forward_kernel(
    stream_ptr,  # [T, WIDTH]
    values_ptr,  # [K, WIDTH]
    bias_ptr,  # [WIDTH]
    branch_rows_ptr,  # int32 [T]
    norm_rows_ptr,  # int32 [T]
    weight_ptr,  # [WIDTH]
    norm_bias_ptr,  # [WIDTH]
    new_stream_ptr,  # [T, WIDTH]
    normed_ptr,  # [N, WIDTH]
    mean_ptr,  # fp32 [N]
    rstd_ptr,  # fp32 [N]
    words_ptr,  # int32 [4], see joins.py
    num_rows,
    eps,
    dropped_levels,
    WIDTH: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    HAS_BRANCH_ROWS: tl.constexpr,
    HAS_NORM_ROWS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Each program handles a tile of whole rows: add, store the stream, normalise, store."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_WIDTH)
    in_rows = rows < num_rows
    in_width = columns < WIDTH
    mask = in_rows[:, None] & in_width[None, :]
    offsets = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    # Parameters are read once per row, in the tile's layout: the cache is faster than a shuffle between threads.
    in_tile = tl.zeros([BLOCK_ROWS, 1], tl.int32) + columns[None, :]
    target = tl.load(norm_rows_ptr + rows, mask=in_rows, other=-1) if HAS_NORM_ROWS else rows
    is_target = in_rows & (target >= 0)
    target_mask = is_target[:, None] & in_width[None, :]
    # Without a branch only the rows that are normalised are needed.
    x = tl.load(stream_ptr + offsets, mask=mask if HAS_BRANCH else target_mask, other=0.0).to(tl.float32)

    if HAS_BRANCH:
        seed, seed_high, site, scale = read_words(words_ptr)
        source = tl.load(branch_rows_ptr + rows, mask=in_rows, other=-1) if HAS_BRANCH_ROWS else rows
        joins = (in_rows & (source >= 0))[:, None] & in_width[None, :]
        source_offsets = source.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        branch = tl.load(values_ptr + source_offsets, mask=joins, other=0.0).to(tl.float32)
        branch += tl.load(bias_ptr + in_tile, mask=mask, other=0.0).to(tl.float32)
        if HAS_DROPOUT:
            joins = joins & keep_tile(source, 0, seed, seed_high, site, dropped_levels, BLOCK_ROWS, BLOCK_WIDTH)
        x = tl.where(joins, x + branch * scale, x)
        tl.store(new_stream_ptr + offsets, x.to(new_stream_ptr.dtype.element_ty), mask=mask)

    mean = tl.sum(x, axis=1) / WIDTH
    centred = tl.where(in_width[None, :], x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / WIDTH + eps)
    weight = tl.load(weight_ptr + in_tile, mask=mask, other=0.0).to(tl.float32)
    norm_bias = tl.load(norm_bias_ptr + in_tile, mask=mask, other=0.0).to(tl.float32)
    normed = centred * rstd[:, None] * weight + norm_bias
    target_offsets = target.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    tl.store(normed_ptr + target_offsets, normed.to(normed_ptr.dtype.element_ty), mask=target_mask)
    tl.store(mean_ptr + target, mean, mask=is_target)
    tl.store(rstd_ptr + target, rstd, mask=is_target)


def add_norm_forward(
    stream: Tensor,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    values: Tensor | None = None,
    bias: Tensor | None = None,
    join: Join | None = None,
    rows: RowMap | None = None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward kernel. The arguments are those of `add_norm`; `tile` defaults to `row_tile(H)`.

    Returns:
        normed [N, H], new stream [T, H] (`stream` itself without a branch), mean and rstd, fp32 [N].
    """
    num_rows, width = stream.shape
    assert width <= TRITON_MAX_WIDTH
    assert stream.is_contiguous()
    assert values is None or values.is_contiguous()
    tile = (tile or row_tile(width)).fitted(num_rows, stream.device)
    count = num_rows if rows is None else rows.count
    normed = torch.empty(count, width, dtype=stream.dtype, device=stream.device)
    mean = torch.empty(count, dtype=torch.float32, device=stream.device)
    rstd = torch.empty_like(mean)
    new_stream = stream if join is None else torch.empty_like(stream)
    if num_rows:
        # In place of a missing tensor the kernel gets another one, which it does not read.
        add_norm_forward_kernel[(ceil_div(num_rows, tile.rows),)](
            stream,
            stream if values is None else values,
            weight if bias is None else bias,
            compact_row(join.rows if join else None, mean),
            compact_row(rows, mean),
            weight,
            norm_bias,
            new_stream,
            normed,
            mean,
            rstd,
            words_of(join, mean),
            num_rows,
            eps=eps,
            HAS_NORM_ROWS=rows is not None,
            **join_arguments(join),
            **tile.launch_arguments(width),
        )
    return normed, new_stream, mean, rstd


def compact_row(rows: RowMap | None, unread: Tensor) -> Tensor:
    """Return a row map's tensor, or for no row map another tensor, which the kernel does not read."""
    return unread if rows is None else rows.compact_row


def join_arguments(join: Join | None) -> dict[str, Any]:
    """Return the arguments of both kernels that depend on the kind of a join, not on its numbers."""
    dropout = NO_DROPOUT if join is None else join.dropout
    dropped = dropped_levels(dropout.probability)
    return {
        "dropped_levels": dropped,
        "HAS_BRANCH": join is not None,
        "HAS_BRANCH_ROWS": join is not None and join.rows is not None,
        "HAS_DROPOUT": dropped > 0,
    }
