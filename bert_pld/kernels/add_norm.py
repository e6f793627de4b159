"""A sub-layer's output joins the residual stream, which is then normalised for the next sub-layer, in one pass.

    x'[t] = x[t] + s · dropout(z[i(t)] + b)        where the branch has row i(t) for stream row t, else x[t]
    n[j]  = LN(x'[t]) with j = j(t)                for the rows that the next sub-layer runs on

s is the gate's scale 1 / p_l of the switchable block (arXiv:2010.13369, section 3); i and j are row maps: the
scatter-add of the sequences that one block kept and the gather of those that the next one keeps. Without a branch this
is a LayerNorm with an optional gather. The specification is `bert_pld.kernels.reference.add_norm`.

Bytes moved: forward reads x and z and writes x' and n; backward reads x' and the gradients of x' and n, and writes
those of x and z. Backward needs x' and, for each row, mean and 1 / σ in fp32; it draws the dropout mask again from its
counter. Reductions are in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_pld.kernels import TRITON_MAX_WIDTH
from bert_pld.kernels.dropout import NO_DROPOUT, dropped_levels, kept_scale
from bert_pld.kernels.reference import Join, RowMap
from bert_pld.kernels.tiles import Tile, ceil_div, keep_tile, reducing_row_tile, row_tile

VARYING = ["num_rows", "scale", "seed", "seed_high", "site", "dropped_levels"]
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
    num_rows,
    scale,
    eps,
    seed,
    seed_high,
    site,
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
        source = tl.load(branch_rows_ptr + rows, mask=in_rows, other=-1) if HAS_BRANCH_ROWS else rows
        joins = (in_rows & (source >= 0))[:, None] & in_width[None, :]
        source_offsets = source.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        branch = tl.load(values_ptr + source_offsets, mask=joins, other=0.0).to(tl.float32)
        branch += tl.load(bias_ptr + in_tile, mask=mask, other=0.0).to(tl.float32)
        if HAS_DROPOUT:
            joins = joins & keep_tile(source, seed, seed_high, site, dropped_levels, BLOCK_ROWS, BLOCK_WIDTH)
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
    num_rows,
    scale,
    seed,
    seed_high,
    site,
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
):
    """Each program loops over tiles of rows and stores its partial sums of the parameters' gradients."""
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK_WIDTH)
    in_width = columns < WIDTH
    weight = tl.load(weight_ptr + columns, mask=in_width, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([BLOCK_WIDTH], tl.float32)
    grad_norm_bias = tl.zeros([BLOCK_WIDTH], tl.float32)
    grad_bias = tl.zeros([BLOCK_WIDTH], tl.float32)

    for first in range(program * BLOCK_ROWS, num_rows, tl.num_programs(0) * BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        in_rows = rows < num_rows
        mask = in_rows[:, None] & in_width[None, :]
        offsets = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        if HAS_GRAD_NEW_STREAM:
            grad = tl.load(grad_new_stream_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        else:
            grad = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)

        if HAS_GRAD_NORMED:
            target = tl.load(norm_rows_ptr + rows, mask=in_rows, other=-1) if HAS_NORM_ROWS else rows
            is_target = in_rows & (target >= 0)
            target_mask = is_target[:, None] & in_width[None, :]
            target_offsets = target.to(tl.int64)[:, None] * WIDTH + columns[None, :]
            grad_normed = tl.load(grad_normed_ptr + target_offsets, mask=target_mask, other=0.0).to(tl.float32)
            x = tl.load(new_stream_ptr + offsets, mask=target_mask, other=0.0).to(tl.float32)
            mean = tl.load(mean_ptr + target, mask=is_target, other=0.0)
            rstd = tl.load(rstd_ptr + target, mask=is_target, other=0.0)
            x_hat = (x - mean[:, None]) * rstd[:, None]
            grad_weight += tl.sum(grad_normed * x_hat, axis=0)
            grad_norm_bias += tl.sum(grad_normed, axis=0)
            # LayerNorm's backward removes the gradient's components along 1 and along x_hat.
            weighted = grad_normed * weight[None, :]
            along_x_hat = tl.sum(weighted * x_hat, axis=1) / WIDTH
            along_ones = tl.sum(weighted, axis=1) / WIDTH
            grad += (weighted - along_ones[:, None] - x_hat * along_x_hat[:, None]) * rstd[:, None]
        tl.store(grad_stream_ptr + offsets, grad.to(grad_stream_ptr.dtype.element_ty), mask=mask)

        if HAS_BRANCH:
            source = tl.load(branch_rows_ptr + rows, mask=in_rows, other=-1) if HAS_BRANCH_ROWS else rows
            joined = (in_rows & (source >= 0))[:, None] & in_width[None, :]
            passes = joined
            if HAS_DROPOUT:
                passes = joined & keep_tile(source, seed, seed_high, site, dropped_levels, BLOCK_ROWS, BLOCK_WIDTH)
            grad_values = tl.where(passes, grad * scale, 0.0)
            grad_bias += tl.sum(grad_values, axis=0)
            source_offsets = source.to(tl.int64)[:, None] * WIDTH + columns[None, :]
            tl.store(grad_values_ptr + source_offsets, grad_values.to(grad_values_ptr.dtype.element_ty), mask=joined)

    partial = partial_ptr + program * (3 if HAS_BRANCH else 2) * WIDTH + columns
    tl.store(partial, grad_weight, mask=in_width)
    tl.store(partial + WIDTH, grad_norm_bias, mask=in_width)
    if HAS_BRANCH:
        tl.store(partial + 2 * WIDTH, grad_bias, mask=in_width)


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
            _compact_row(join.rows if join else None, mean),
            _compact_row(rows, mean),
            weight,
            norm_bias,
            new_stream,
            normed,
            mean,
            rstd,
            num_rows,
            eps=eps,
            HAS_NORM_ROWS=rows is not None,
            **_join_arguments(join),
            **tile.launch_arguments(width),
        )
    return normed, new_stream, mean, rstd


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
        _compact_row(join.rows if join else None, mean),
        _compact_row(rows, mean),
        grad_stream,
        grad_stream if grad_values is None else grad_values,
        partial,
        num_rows,
        HAS_NORM_ROWS=rows is not None,
        HAS_GRAD_NORMED=grad_normed is not None,
        HAS_GRAD_NEW_STREAM=grad_new_stream is not None,
        **_join_arguments(join),
        **tile.launch_arguments(width),
    )
    return grad_stream, grad_values, partial.sum(0)


def _compact_row(rows: RowMap | None, unread: Tensor) -> Tensor:
    return unread if rows is None else rows.compact_row


def _join_arguments(join: Join | None) -> dict[str, Any]:
    dropout = NO_DROPOUT if join is None else join.dropout
    dropped = dropped_levels(dropout.probability)
    low, high = dropout.key_words
    return {
        "scale": 1.0 if join is None else float(join.scale) * kept_scale(dropped),
        "seed": low,
        "seed_high": high,
        "site": dropout.site,
        "dropped_levels": dropped,
        "HAS_BRANCH": join is not None,
        "HAS_BRANCH_ROWS": join is not None and join.rows is not None,
        "HAS_DROPOUT": dropped > 0,
    }


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, stream, weight, norm_bias, eps, values, bias, join, rows):
        normed, new_stream, mean, rstd = add_norm_forward(stream, weight, norm_bias, eps, values, bias, join, rows)
        ctx.save_for_backward(new_stream, weight, mean, rstd)
        ctx.join, ctx.rows = join, rows
        ctx.set_materialize_grads(False)
        return normed, new_stream

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_normed, grad_new_stream):
        new_stream, weight, mean, rstd = ctx.saved_tensors
        grad_stream, grad_values, sums = add_norm_backward(
            grad_normed, grad_new_stream, new_stream, weight, mean, rstd, ctx.join, ctx.rows
        )
        grad_weight, grad_norm_bias, *grad_bias = sums.to(weight.dtype)
        return grad_stream, grad_weight, grad_norm_bias, None, grad_values, *(grad_bias or [None]), None, None


def add_norm(
    stream: Tensor,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    values: Tensor | None = None,
    bias: Tensor | None = None,
    join: Join | None = None,
    rows: RowMap | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `bert_pld.kernels.reference.add_norm` as one kernel in each direction; differentiable once.

    Arguments and result are those of the reference; H is at most `TRITON_MAX_WIDTH`.
    """
    values = None if values is None else values.contiguous()
    return _AddNorm.apply(stream.contiguous(), weight, norm_bias, eps, values, bias, join, rows)
