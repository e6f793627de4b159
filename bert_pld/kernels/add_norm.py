"""A sub-layer's output joins the residual stream and the stream is normalised for the next sub-layer, in one pass.

Without a branch this is a LayerNorm with an optional gather of rows; with one, its bias, dropout, gate scale and
residual sum, and an optional scatter of rows, come first. The specification is `bert_pld.kernels.reference.add_norm`;
the formula stands in `bert_pld.kernels.add_norm_kernels`. For backward the new stream is kept, and mean and 1 / σ a row
in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_pld.kernels import TRITON_MAX_WIDTH
from bert_pld.kernels.add_norm_kernels import add_norm_backward_kernel, add_norm_forward_kernel
from bert_pld.kernels.dropout import NO_DROPOUT, dropped_levels, kept_scale
from bert_pld.kernels.reference import Join, RowMap
from bert_pld.kernels.tiles import Tile, ceil_div, reducing_row_tile, row_tile


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
    """Launch the forward kernel: arguments as `add_norm`; `tile` is by default `row_tile(H)`.

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
        # Where there is no such tensor the kernel gets one that it won't read.
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
            **_tile_arguments(tile, width),
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

    Args:
        grad_normed: [N, H], or None for zeros.
        grad_new_stream: [T, H], or None for zeros.
        new_stream: [T, H], as the forward returned it.
        weight: [H].
        mean: fp32 [N], as the forward returned it.
        rstd: fp32 [N], as the forward returned it.
        join: as the forward got it.
        rows: as the forward got it.
        tile: by default `reducing_row_tile(H)`.

    Returns:
        Gradients of the stream [T, H] and of the branch's values [K, H] (None without one), and fp32 [3, H]: of
        weight, norm_bias and the branch's bias ([2, H] without one).
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
        **_tile_arguments(tile, width),
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


def _tile_arguments(tile: Tile, width: int) -> dict[str, Any]:
    return {"WIDTH": width, "BLOCK_ROWS": tile.rows, "BLOCK_WIDTH": tile.width, "num_warps": tile.num_warps}


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
    """`bert_pld.kernels.reference.add_norm` as one kernel each way, differentiable once.

    Args:
        stream: [T, H], H at most `TRITON_MAX_WIDTH`.
        weight: [H] of the LayerNorm.
        norm_bias: [H] of the LayerNorm.
        eps: of the LayerNorm.
        values: [K, H] that join the stream, or None.
        bias: [H] added to them first; given with them.
        join: where and how they join; given with them.
        rows: the N rows to normalise; None: all T.

    Returns:
        normed [N, H] and the new stream [T, H].
    """
    values = None if values is None else values.contiguous()
    return _AddNorm.apply(stream.contiguous(), weight, norm_bias, eps, values, bias, join, rows)
