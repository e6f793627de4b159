"""The backward kernel of `add_norm`, and the function that launches it on plain tensors."""

# ruff: noqa: RUF005 – Triton compiles no starred expressions
# mypy: disable-error-code="assignment, var-annotated"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bert_pld.kernels.add_norm_forward import ROW_MAPS, VARYING, compact_row, join_arguments
from bert_pld.kernels.joins import read_words, words_of
from bert_pld.kernels.reference import Join, RowMap
from bert_pld.kernels.tiles import Tile, keep_tile, reducing_row_tile


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=ROW_MAPS)
def add_norm_backward_kernel(
    grad_normed_ptr,  # [N, WIDTH]
    grad_new_stream_ptr,  # [T, WIDTH]
    new_stream_ptr,  # [T, WIDTH]
    weight_ptr,  # [WIDTH]
    mean_ptr,  # fp32 [N]
    rstd_ptr,  # fp32 [N]
    branch_rows_ptr,  # int32 [T]
    norm_rows_ptr,  # int32 [T]
    grad_stream_ptr,  # [T, WIDTH]
    grad_values_ptr,  # [K, WIDTH]
    partial_ptr,  # fp32 [programs, 3, WIDTH]: of weight, norm_bias and bias; 2 instead of 3 without a branch
    words_ptr,  # int32 [4], see joins.py
    num_rows,
    dropped_levels,
    WIDTH: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    HAS_BRANCH_ROWS: tl.constexpr,
    HAS_NORM_ROWS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    HAS_GRAD_NORMED: tl.constexpr,
    HAS_GRAD_NEW_STREAM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    PIECES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Each program loops over tiles of rows, in PIECES of columns, and stores its partial sums over rows.

    The sums stay in the tile's layout until the loop ends, so that threads with different rows need not meet in it.
    """
    program = tl.program_id(0)
    if HAS_BRANCH:
        seed, seed_high, site, scale = read_words(words_ptr)
    in_tile = tl.zeros([BLOCK_ROWS, 1], tl.int32) + tl.arange(0, BLOCK_WIDTH)[None, :]
    weight = ()
    grad_weight = ()
    grad_norm_bias = ()
    grad_bias = ()
    for piece in tl.static_range(PIECES):
        columns = piece * BLOCK_WIDTH + in_tile
        weight = weight + (tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32),)
        zeros = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
        grad_weight = grad_weight + (zeros,)
        grad_norm_bias = grad_norm_bias + (zeros,)
        grad_bias = grad_bias + (zeros,)

    for first in tl.range(program * BLOCK_ROWS, num_rows, tl.num_programs(0) * BLOCK_ROWS, num_stages=STAGES):
        rows = first + tl.arange(0, BLOCK_ROWS)
        in_rows = rows < num_rows
        start = rows.to(tl.int64)[:, None] * WIDTH
        grad = ()
        for piece in tl.static_range(PIECES):
            columns = piece * BLOCK_WIDTH + in_tile
            if HAS_GRAD_NEW_STREAM:
                mask = in_rows[:, None] & (columns < WIDTH)
                grad = grad + (tl.load(grad_new_stream_ptr + start + columns, mask=mask, other=0.0),)
            else:
                grad = grad + (tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32),)

        if HAS_GRAD_NORMED:
            target = tl.load(norm_rows_ptr + rows, mask=in_rows, other=-1) if HAS_NORM_ROWS else rows
            is_target = in_rows & (target >= 0)
            target_start = target.to(tl.int64)[:, None] * WIDTH
            mean = tl.load(mean_ptr + target, mask=is_target, other=0.0)
            rstd = tl.load(rstd_ptr + target, mask=is_target, other=0.0)
            old_grad, old_weight, old_norm_bias = grad, grad_weight, grad_norm_bias
            grad_weight = ()
            grad_norm_bias = ()
            weighted = ()
            x_hat = ()
            along_ones = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
            along_x_hat = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
            for piece in tl.static_range(PIECES):
                columns = piece * BLOCK_WIDTH + in_tile
                mask = is_target[:, None] & (columns < WIDTH)
                grad_normed = tl.load(grad_normed_ptr + target_start + columns, mask=mask, other=0.0).to(tl.float32)
                x = tl.load(new_stream_ptr + start + columns, mask=mask, other=0.0).to(tl.float32)
                normed = (x - mean[:, None]) * rstd[:, None]
                by_weight = grad_normed * weight[piece]
                grad_weight = grad_weight + (old_weight[piece] + grad_normed * normed,)
                grad_norm_bias = grad_norm_bias + (old_norm_bias[piece] + grad_normed,)
                along_ones += by_weight
                along_x_hat += by_weight * normed
                weighted = weighted + (by_weight,)
                x_hat = x_hat + (normed,)
            # LayerNorm's backward removes the gradient's components along 1 and along x_hat; both sums over a row are
            # one reduction.
            ones_sum, x_hat_sum = tl.split(tl.sum(tl.join(along_ones, along_x_hat), axis=1))
            ones_part = (ones_sum * rstd / WIDTH)[:, None]
            x_hat_part = (x_hat_sum * rstd / WIDTH)[:, None]
            grad = ()
            for piece in tl.static_range(PIECES):
                through_norm = weighted[piece] * rstd[:, None] - ones_part - x_hat[piece] * x_hat_part
                grad = grad + (old_grad[piece].to(tl.float32) + through_norm,)

        source = rows
        if HAS_BRANCH_ROWS:
            source = tl.load(branch_rows_ptr + rows, mask=in_rows, other=-1)
        is_source = in_rows & (source >= 0)
        old_bias = grad_bias
        grad_bias = ()
        for piece in tl.static_range(PIECES):
            columns = piece * BLOCK_WIDTH + in_tile
            whole = grad[piece].to(tl.float32)
            mask = in_rows[:, None] & (columns < WIDTH)
            tl.store(grad_stream_ptr + start + columns, whole.to(grad_stream_ptr.dtype.element_ty), mask=mask)
            if HAS_BRANCH:
                joined = is_source[:, None] & (columns < WIDTH)
                passes = joined
                if HAS_DROPOUT:
                    keep = keep_tile(
                        source, piece * BLOCK_WIDTH, seed, seed_high, site, dropped_levels, BLOCK_ROWS, BLOCK_WIDTH
                    )
                    passes = joined & keep
                grad_values = tl.where(passes, whole * scale, 0.0)
                source_offsets = source.to(tl.int64)[:, None] * WIDTH + columns
                tl.store(grad_values_ptr + source_offsets, grad_values.to(grad_values_ptr.dtype.element_ty), joined)
                grad_bias = grad_bias + (old_bias[piece] + grad_values,)
            else:
                grad_bias = grad_bias + (old_bias[piece],)

    for piece in tl.static_range(PIECES):
        columns = piece * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        in_width = columns < WIDTH
        partial = partial_ptr + program * (3 if HAS_BRANCH else 2) * WIDTH + columns
        tl.store(partial, tl.sum(grad_weight[piece], axis=0), mask=in_width)
        tl.store(partial + WIDTH, tl.sum(grad_norm_bias[piece], axis=0), mask=in_width)
        if HAS_BRANCH:
            tl.store(partial + 2 * WIDTH, tl.sum(grad_bias[piece], axis=0), mask=in_width)


def add_norm_backward(
    grad_normed: Tensor | None,
    grad_new_stream: Tensor | None,
    new_stream: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    join: Join | None = None,
    rows: RowMap | None = None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Launch the backward kernel.

    `grad_normed` [N, H] and `grad_new_stream` [T, H] may be None for zeros; the other arguments are those that the
    forward got or returned. `tile` defaults to `reducing_row_tile(H)`.

    Returns:
        Gradients of the stream [T, H], of the branch's values [K, H] (None without a branch), and, as fp32 [3, H], of
        weight, norm_bias and the branch's bias ([2, H] without a branch).
    """
    num_rows, width = new_stream.shape
    tile = (tile or reducing_row_tile(width)).fitted(num_rows, new_stream.device)
    grad_stream, grad_values = torch.empty_like(new_stream), None
    if join is not None:
        count = num_rows if join.rows is None else join.rows.count
        grad_values = torch.empty(count, width, dtype=new_stream.dtype, device=new_stream.device)
    programs, sums = tile.programs(num_rows, new_stream.device), 2 if join is None else 3
    if not programs:
        return grad_stream, grad_values, torch.zeros(sums, width, dtype=torch.float32, device=new_stream.device)
    partial = torch.empty(programs, sums, width, dtype=torch.float32, device=new_stream.device)
    add_norm_backward_kernel[(programs,)](
        new_stream if grad_normed is None else grad_normed.contiguous(),
        new_stream if grad_new_stream is None else grad_new_stream.contiguous(),
        new_stream,
        weight,
        mean,
        rstd,
        compact_row(join.rows if join else None, mean),
        compact_row(rows, mean),
        grad_stream,
        grad_stream if grad_values is None else grad_values,
        partial,
        words_of(join, mean),
        num_rows,
        HAS_NORM_ROWS=rows is not None,
        HAS_GRAD_NORMED=grad_normed is not None,
        HAS_GRAD_NEW_STREAM=grad_new_stream is not None,
        **join_arguments(join),
        PIECES=tile.pieces,
        STAGES=tile.num_stages,
        **tile.launch_arguments(width),
    )
    return grad_stream, grad_values, partial.sum(0)
