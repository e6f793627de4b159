"""The Triton kernels of `bert_pld.kernels.add_norm`: one pass over the residual stream each way.

    x'[t] = x[t] + s · dropout(z[i(t)] + b)        where the branch has row i(t) for stream row t, else x[t]
    n[j]  = LN(x'[t]) with j = j(t)                for the rows that the next sub-layer runs on

s is the gate's 1 / p_l of the switchable block (arXiv:2010.13369, section 3); i and j are row maps: the scatter-add of
the sequences that one block kept and the gather of those that the next one keeps.

Bytes moved: forward reads x and z and writes x' and n; backward reads x' and the gradients of x' and n, and writes
those of x and z. Reductions are in fp32. The backward kernel draws the dropout mask again from its counter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bert_pld.kernels.tiles import keep_tile

VARYING = ["num_rows", "scale", "seed", "seed_high", "site", "dropped_levels"]
"""Arguments that change from call to call: a kernel must not be compiled again for a particular value."""
ROW_MAPS = ["branch_rows_ptr", "norm_rows_ptr"]
"""Rows of one matrix, so aligned or not as the number of tokens has it: no reason to compile again either."""


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
    """A tile of whole rows a program: add, store the stream, normalise, store."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_WIDTH)
    in_rows = rows < num_rows
    in_width = columns < WIDTH
    mask = in_rows[:, None] & in_width[None, :]
    offsets = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    # A parameter is read once a row, in the tile's own layout: the cache serves it faster than a shuffle would.
    in_tile = tl.zeros([BLOCK_ROWS, 1], tl.int32) + columns[None, :]
    target = tl.load(norm_rows_ptr + rows, mask=in_rows, other=-1) if HAS_NORM_ROWS else rows
    is_target = in_rows & (target >= 0)
    target_mask = is_target[:, None] & in_width[None, :]
    # Without a branch a row that is not normalised is not needed.
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
    partial_ptr,  # fp32 [programs, 3, WIDTH]: of weight, norm_bias, bias; [programs, 2, WIDTH] without a branch
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
    """Each program walks down the rows, tile by tile, and leaves its share of the parameters' gradients."""
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
