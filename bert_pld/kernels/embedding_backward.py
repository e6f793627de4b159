"""The backward kernels of `embed` but for the word table's, and the function that launches them on plain tensors.

A program sees one position of many sequences (or a few positions, if rows are narrow), so that it can sum over the
sequences without a sort.
"""

# ruff: noqa: RUF005 – Triton compiles no starred expressions
# mypy: disable-error-code="assignment, var-annotated"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bert_pld.kernels.dropout import CounterDropout, dropout_arguments
from bert_pld.kernels.embedding_forward import INDICES, VARYING, Tokens, embedded_piece, table_arguments
from bert_pld.kernels.reference import EmbeddingTables
from bert_pld.kernels.tiles import Tile, ceil_div, keep_tile, power_of_two_from, reducing_row_tile

SEQUENCES_A_PROGRAM = 64
SUMS_TILE = {"BLOCK_PLACES": 64, "BLOCK_ROWS": 64, "BLOCK_WIDTH": 64, "num_warps": 4}


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def embedding_backward_kernel(
    grad_out_ptr,  # [T, WIDTH]
    row_ids_ptr,  # int32 [T]
    token_types_ptr,  # int64 [B · S]
    flat_ptr,  # int64 [T]
    edges_ptr,  # int32 [D + 1]
    word_ptr,  # [V, WIDTH]
    position_ptr,  # [P, WIDTH]
    token_type_ptr,  # [TYPES, WIDTH]
    weight_ptr,  # [WIDTH]
    mean_ptr,  # fp32 [T]
    rstd_ptr,  # fp32 [T]
    grad_sum_ptr,  # [T, WIDTH]
    partial_ptr,  # fp32 [longest, groups, SUMS + norm's parameters, WIDTH]
    num_rows,
    longest,
    num_sequences,
    position_offset,
    scale,
    seed,
    seed_high,
    site,
    dropped_levels,
    WIDTH: tl.constexpr,
    HAS_FLAT: tl.constexpr,
    HAS_EDGES: tl.constexpr,
    HAS_POSITION: tl.constexpr,
    TYPES: tl.constexpr,
    SUMS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PLACES: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    PIECES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Each program takes a position or a few of a group of sequences: gradients of the tables' sums, and their sums.

    The sums stay in the tile's layout until the loop ends, so that threads with different rows need not meet in it.
    """
    group = tl.program_id(1)
    places = tl.program_id(0) * BLOCK_PLACES + tl.arange(0, BLOCK_ROWS) // (BLOCK_ROWS // BLOCK_PLACES)
    in_tile = tl.zeros([BLOCK_ROWS, 1], tl.int32) + tl.arange(0, BLOCK_WIDTH)[None, :]
    first_sum = ()
    second_sum = ()
    grad_weight = ()
    grad_norm_bias = ()
    for _ in tl.static_range(PIECES):
        zeros = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
        first_sum = first_sum + (zeros,)
        second_sum = second_sum + (zeros,)
        grad_weight = grad_weight + (zeros,)
        grad_norm_bias = grad_norm_bias + (zeros,)

    at_once: tl.constexpr = BLOCK_ROWS // BLOCK_PLACES
    for first in tl.range(group * at_once, num_sequences, tl.num_programs(1) * at_once, num_stages=STAGES):
        sequences = first + tl.arange(0, BLOCK_ROWS) % at_once
        in_rows = (sequences < num_sequences) & (places < longest)
        if HAS_EDGES:
            rows = tl.load(edges_ptr + sequences, mask=in_rows, other=0) + places
            in_rows = in_rows & (rows < tl.load(edges_ptr + sequences + 1, mask=in_rows, other=0))
        else:
            rows = sequences * longest + places
            in_rows = in_rows & (rows < num_rows)
        start = rows.to(tl.int64)[:, None] * WIDTH
        kinds = rows
        if TYPES == 2:
            flat = tl.load(flat_ptr + rows, mask=in_rows, other=0) if HAS_FLAT else rows
            kinds = tl.load(token_types_ptr + flat, mask=in_rows, other=0).to(tl.int32)
        grad = ()
        for piece in tl.static_range(PIECES):
            columns = piece * BLOCK_WIDTH + in_tile
            mask = in_rows[:, None] & (columns < WIDTH)
            value = tl.load(grad_out_ptr + start + columns, mask=mask, other=0.0).to(tl.float32)
            if HAS_DROPOUT:
                keep = keep_tile(
                    rows, piece * BLOCK_WIDTH, seed, seed_high, site, dropped_levels, BLOCK_ROWS, BLOCK_WIDTH
                )
                value = tl.where(keep, value * scale, 0.0)
            grad = grad + (value,)

        if HAS_NORM:
            ids = tl.load(row_ids_ptr + rows, mask=in_rows, other=0)
            mean = tl.load(mean_ptr + rows, mask=in_rows, other=0.0)
            rstd = tl.load(rstd_ptr + rows, mask=in_rows, other=0.0)
            upstream, old_weight, old_norm_bias = grad, grad_weight, grad_norm_bias
            grad_weight = ()
            grad_norm_bias = ()
            weighted = ()
            x_hat = ()
            along_ones = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
            along_x_hat = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
            for piece in tl.static_range(PIECES):
                columns = piece * BLOCK_WIDTH + in_tile
                mask = in_rows[:, None] & (columns < WIDTH)
                x = embedded_piece(
                    ids,
                    places + position_offset,
                    kinds,
                    columns,
                    mask,
                    word_ptr,
                    position_ptr,
                    token_type_ptr,
                    WIDTH,
                    HAS_POSITION,
                    TYPES,
                )
                normed = (x - mean[:, None]) * rstd[:, None]
                weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
                by_weight = upstream[piece] * weight
                grad_weight = grad_weight + (old_weight[piece] + upstream[piece] * normed,)
                grad_norm_bias = grad_norm_bias + (old_norm_bias[piece] + upstream[piece],)
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
                grad = grad + (weighted[piece] * rstd[:, None] - ones_part - x_hat[piece] * x_hat_part,)

        old_first, old_second = first_sum, second_sum
        first_sum = ()
        second_sum = ()
        is_second = (kinds == 1)[:, None]
        for piece in tl.static_range(PIECES):
            columns = piece * BLOCK_WIDTH + in_tile
            mask = in_rows[:, None] & (columns < WIDTH)
            if HAS_NORM or HAS_DROPOUT:
                tl.store(grad_sum_ptr + start + columns, grad[piece].to(grad_sum_ptr.dtype.element_ty), mask=mask)
            if SUMS == 2:
                first_sum = first_sum + (old_first[piece] + tl.where(is_second, 0.0, grad[piece]),)
                second_sum = second_sum + (old_second[piece] + tl.where(is_second, grad[piece], 0.0),)
            else:
                first_sum = first_sum + (old_first[piece] + grad[piece],)
                second_sum = second_sum + (old_second[piece],)

    stored: tl.constexpr = SUMS + HAS_NORM + HAS_NORM_BIAS
    targets = tl.program_id(0) * BLOCK_PLACES + tl.arange(0, BLOCK_PLACES)[:, None]
    for piece in tl.static_range(PIECES):
        columns = piece * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)[None, :]
        mask = (targets < longest) & (columns < WIDTH)
        partial = partial_ptr + (targets * tl.num_programs(1) + group).to(tl.int64) * (stored * WIDTH) + columns
        if SUMS >= 1:
            tl.store(partial, _sum_by_place(first_sum[piece], BLOCK_PLACES), mask=mask)
        if SUMS == 2:
            tl.store(partial + WIDTH, _sum_by_place(second_sum[piece], BLOCK_PLACES), mask=mask)
        if HAS_NORM:
            tl.store(partial + SUMS * WIDTH, _sum_by_place(grad_weight[piece], BLOCK_PLACES), mask=mask)
        if HAS_NORM_BIAS:
            tl.store(partial + (SUMS + 1) * WIDTH, _sum_by_place(grad_norm_bias[piece], BLOCK_PLACES), mask=mask)


@triton.jit
def _sum_by_place(rows, BLOCK_PLACES: tl.constexpr):
    """Add the rows of each place: [BLOCK_ROWS, BLOCK_WIDTH] → [BLOCK_PLACES, BLOCK_WIDTH]."""
    if BLOCK_PLACES == 1:
        return tl.sum(rows, axis=0)[None, :]
    else:
        return tl.sum(tl.reshape(rows, [BLOCK_PLACES, rows.shape[0] // BLOCK_PLACES, rows.shape[1]]), axis=1)


@triton.jit(do_not_specialize=["longest", "groups", "table_rows", "position_offset"])
def embedding_sums_kernel(
    partial_ptr,  # fp32 [longest, groups, ALL, WIDTH]
    out_ptr,  # [table_rows + ALL, WIDTH]
    longest,
    groups,
    table_rows,
    position_offset,
    WIDTH: tl.constexpr,
    SUMS: tl.constexpr,
    ALL: tl.constexpr,
    BLOCK_PLACES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """The first programs sum some positions over groups and types; each of the others one of the sums over all."""
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    in_width = (columns < WIDTH)[None, :]
    tiles = tl.cdiv(table_rows, BLOCK_PLACES)
    if tl.program_id(0) < tiles:
        targets = tl.program_id(0) * BLOCK_PLACES + tl.arange(0, BLOCK_PLACES)
        places = targets - position_offset
        inside = (places >= 0) & (places < longest)
        total = tl.zeros([BLOCK_PLACES, BLOCK_WIDTH], tl.float32)
        for group in range(0, groups):
            sources = ((places * groups + group) * ALL).to(tl.int64)[:, None] * WIDTH + columns[None, :]
            for kind in tl.static_range(SUMS):
                total += tl.load(partial_ptr + sources + kind * WIDTH, mask=inside[:, None] & in_width, other=0.0)
        out = out_ptr + targets[:, None] * WIDTH + columns[None, :]
        tl.store(out, total.to(out_ptr.dtype.element_ty), mask=(targets < table_rows)[:, None] & in_width)
    else:
        which = tl.program_id(0) - tiles
        sums = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
        for first in range(0, longest * groups, BLOCK_ROWS):
            programs = first + tl.arange(0, BLOCK_ROWS)
            sources = (programs * ALL + which).to(tl.int64)[:, None] * WIDTH + columns[None, :]
            sums += tl.load(partial_ptr + sources, mask=(programs < longest * groups)[:, None] & in_width, other=0.0)
        result = tl.sum(sums, axis=0).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + (table_rows + which) * WIDTH + columns, result, mask=columns < WIDTH)


def stages(tile: Tile, element_bytes: int) -> int:
    """Return the number of stages of the kernel's loop with elements of a size.

    In fp32, two tiles ahead of five tensors are 121 KiB, more shared memory than a program has on sm_86, 89 and 120.
    """
    return tile.num_stages if element_bytes < 4 else min(tile.num_stages, 2)


def embedding_backward(
    grad_out: Tensor,
    tables: EmbeddingTables,
    tokens: Tokens,
    saved: tuple[Tensor, Tensor, Tensor],
    dropout: CounterDropout,
    tile: Tile | None = None,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Launch the backward kernels. `saved` are ids, mean and rstd from forward; `tile` as in `embedding_forward`.

    Returns:
        The gradient of the sum of the tables' rows, [T, W], of which the gradient of the word table is a sum, and the
        gradients of position, token type, weight and bias of the LayerNorm; None where there is no such parameter.
    """
    num_rows, width = grad_out.shape
    device, row_ids, mean, rstd = grad_out.device, *saved
    arguments, dropped = table_arguments(tables), dropout_arguments(dropout)
    if tables.position is None:
        tokens = tokens.in_any_order(SEQUENCES_A_PROGRAM)
    tile = (tile or reducing_row_tile(width)).fitted(num_rows, device)
    at_once = min(tile.rows, power_of_two_from(min(tokens.sequences, SEQUENCES_A_PROGRAM)))
    places = tile.rows // at_once
    sums = max(arguments["TYPES"], int(arguments["HAS_POSITION"]))
    every = sums + arguments["HAS_NORM"] + arguments["HAS_NORM_BIAS"]
    groups = ceil_div(tokens.sequences, SEQUENCES_A_PROGRAM)
    table_rows = 0 if tables.position is None else len(tables.position)
    changes = arguments["HAS_NORM"] or dropped["HAS_DROPOUT"]
    grad_sum = torch.empty_like(grad_out) if changes else grad_out
    out = torch.empty(table_rows + every, width, dtype=grad_out.dtype, device=device)
    longest = tokens.longest if num_rows else 0
    partial = torch.empty(longest, groups, every, width, dtype=torch.float32, device=device)
    if num_rows:
        if not arguments["HAS_NORM"]:  # Nothing of the tables is read.
            arguments |= dict.fromkeys(("word_ptr", "position_ptr", "token_type_ptr", "weight_ptr"), grad_out)
        embedding_backward_kernel[(ceil_div(longest, places), groups)](
            grad_out,
            row_ids,
            mean_ptr=mean,
            rstd_ptr=rstd,
            grad_sum_ptr=grad_sum,
            partial_ptr=partial,
            num_sequences=tokens.sequences,
            SUMS=sums,
            BLOCK_PLACES=places,
            PIECES=tile.pieces,
            STAGES=stages(tile, grad_out.element_size()),
            **tokens.arguments,
            **arguments,
            **dropped,
            **tile.launch_arguments(width),
        )
    grid = ceil_div(table_rows, SUMS_TILE["BLOCK_PLACES"]) + every, ceil_div(width, SUMS_TILE["BLOCK_WIDTH"])
    sizes = {"WIDTH": width, "SUMS": sums, "ALL": every, **SUMS_TILE}
    embedding_sums_kernel[grid](partial, out, longest, groups, table_rows, tables.position_offset, **sizes)
    position, others = out[:table_rows], out[table_rows:]
    return grad_sum, (
        None if tables.position is None else position,
        None if tables.token_type is None else others[: arguments["TYPES"]],
        None if tables.norm_weight is None else others[sums],
        None if tables.norm_bias is None else others[sums + 1],
    )
