"""The forward kernel of `embed`, and the function that launches it on plain tensors."""

# ruff: noqa: RUF005 – Triton compiles no starred expressions
# mypy: disable-error-code="assignment, var-annotated"
from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bert_pld.kernels.dropout import CounterDropout, dropout_arguments
from bert_pld.kernels.layout import TokenLayout
from bert_pld.kernels.reference import EmbeddingTables
from bert_pld.kernels.tiles import ASSERTIONS, Tile, ceil_div, keep_tile, reducing_row_tile

MOST_TYPES = 2
"""Most rows of the token-type table: the backward kernel keeps a sum for each."""
VARYING = ["num_rows", "longest", "num_sequences", "position_offset", "scale", "seed", "seed_high", "site"]
VARYING += ["dropped_levels"]
"""Arguments that change from call to call: special values (1, multiples of 16) must not trigger a compilation."""
INDICES = ["input_ids_ptr", "token_types_ptr", "flat_ptr", "edges_ptr"]
"""Pointers whose alignment depends on the batch and must not trigger one either."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens to be embedded: T rows that belong to D sequences, one after the other."""

    input_ids: Tensor
    """int64 [B · S], with padding."""
    token_types: Tensor
    """int64 [B · S]; read if there are two types."""
    flat: Tensor | None
    """int64 [T]: index of each row into [B · S]; None if the two are equal."""
    edges: Tensor | None
    """int32 [D + 1]: first row of each sequence, then T; None if all sequences have `longest` rows."""
    sequences: int
    """D; a sequence is a document where the rows have several."""
    longest: int
    """Positions; no sequence has more."""
    total: int
    """T."""

    def in_any_order(self, sequences: int) -> Tokens:
        """Return the same rows as sequences of equal length, for a model without positions."""
        longest = ceil_div(self.total, sequences)
        return dataclasses.replace(self, edges=None, sequences=sequences, longest=longest)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the kernels; in place of a missing tensor they get another one, which they do not read."""
        return {
            "token_types_ptr": self.token_types,
            "flat_ptr": self.input_ids if self.flat is None else self.flat,
            "edges_ptr": self.input_ids if self.edges is None else self.edges,
            "num_rows": self.total,
            "longest": self.longest,
            "HAS_FLAT": self.flat is not None,
            "HAS_EDGES": self.edges is not None,
        }


def tokens_of(layout: TokenLayout, input_ids: Tensor, token_types: Tensor | None) -> Tokens:
    """Return the tokens of ids and types [B, S]."""
    # A row that is repeated, or one of two stacked tensors, stays a view with other strides when it is flattened.
    flat_ids = input_ids.flatten().contiguous()
    flat_types = flat_ids if token_types is None else token_types.flatten().contiguous()
    edges, sequences, longest = layout.cumulative_lengths, len(layout.lengths), layout.longest
    if layout.documents is not None:
        edges, sequences = layout.documents.edges, len(layout.documents.lengths)
        longest = layout.documents.longest
    return Tokens(flat_ids, flat_types, layout.positions, edges, sequences, longest, layout.total)


def table_arguments(tables: EmbeddingTables) -> dict[str, Any]:
    """Return the arguments of both kernels that depend on the parameters."""
    word = tables.word
    return {
        "word_ptr": word,
        "position_ptr": word if tables.position is None else tables.position,
        "token_type_ptr": word if tables.token_type is None else tables.token_type,
        "weight_ptr": word if tables.norm_weight is None else tables.norm_weight,
        "position_offset": tables.position_offset,
        "HAS_POSITION": tables.position is not None,
        "TYPES": 0 if tables.token_type is None else len(tables.token_type),
        "HAS_NORM": tables.norm_weight is not None,
        "HAS_NORM_BIAS": tables.norm_bias is not None,
    }


@triton.jit
def embedded_piece(
    ids,  # [BLOCK_ROWS]
    positions,  # [BLOCK_ROWS]
    kinds,  # [BLOCK_ROWS]
    columns,  # [BLOCK_ROWS, BLOCK_WIDTH]
    mask,  # [BLOCK_ROWS, BLOCK_WIDTH]
    word_ptr,
    position_ptr,
    token_type_ptr,
    WIDTH: tl.constexpr,
    HAS_POSITION: tl.constexpr,
    TYPES: tl.constexpr,
):
    """Return the sum of the tables' rows in fp32, before LayerNorm and dropout."""
    x = tl.load(word_ptr + ids.to(tl.int64)[:, None] * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_POSITION:
        x += tl.load(position_ptr + positions[:, None] * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    if TYPES == 1:
        x += tl.load(token_type_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    if TYPES == 2:
        x += tl.load(token_type_ptr + kinds[:, None] * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    return x


@triton.jit(do_not_specialize=[*VARYING, "vocabulary"], do_not_specialize_on_alignment=INDICES, debug=True)
def embedding_forward_kernel(
    input_ids_ptr,  # int64 [B · S]
    token_types_ptr,  # int64 [B · S]
    flat_ptr,  # int64 [T]
    edges_ptr,  # int32 [D + 1]
    word_ptr,  # [V, WIDTH]
    position_ptr,  # [P, WIDTH]
    token_type_ptr,  # [TYPES, WIDTH]
    weight_ptr,  # [WIDTH]
    norm_bias_ptr,  # [WIDTH]
    out_ptr,  # [T, WIDTH]
    row_ids_ptr,  # int32 [T]
    mean_ptr,  # fp32 [T]
    rstd_ptr,  # fp32 [T]
    num_rows,
    longest,
    vocabulary,
    position_offset,
    eps,
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
    HAS_NORM: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Each program embeds a few tokens of one sequence, in PIECES of columns."""
    tiles = tl.cdiv(longest, BLOCK_ROWS)
    sequence = tl.program_id(0) // tiles
    first_place = tl.program_id(0) % tiles * BLOCK_ROWS
    start, end = sequence * longest, num_rows
    if HAS_EDGES:
        start = tl.load(edges_ptr + sequence)
        end = tl.load(edges_ptr + sequence + 1)
    if start + first_place >= end:
        return
    places = first_place + tl.arange(0, BLOCK_ROWS)
    rows = start + places
    in_rows = (places < longest) & (rows < end)
    flat = tl.load(flat_ptr + rows, mask=in_rows, other=0) if HAS_FLAT else rows
    ids = tl.load(input_ids_ptr + flat, mask=in_rows, other=0)
    tl.device_assert((ids >= 0) & (ids < vocabulary), "a token id is outside the word embedding")
    tl.store(row_ids_ptr + rows, ids.to(tl.int32), mask=in_rows)
    kinds = tl.load(token_types_ptr + flat, mask=in_rows, other=0) if TYPES == 2 else ids
    if TYPES == 2:
        tl.device_assert((kinds >= 0) & (kinds < TYPES), "a token type is outside the token-type embedding")

    in_tile = tl.zeros([BLOCK_ROWS, 1], tl.int32) + tl.arange(0, BLOCK_WIDTH)[None, :]
    start_offsets = rows.to(tl.int64)[:, None] * WIDTH
    x = ()
    along_ones = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
    for piece in tl.static_range(PIECES):
        columns = piece * BLOCK_WIDTH + in_tile
        value = embedded_piece(
            ids,
            places + position_offset,
            kinds,
            columns,
            in_rows[:, None] & (columns < WIDTH),
            word_ptr,
            position_ptr,
            token_type_ptr,
            WIDTH,
            HAS_POSITION,
            TYPES,
        )
        along_ones += value
        x = x + (value,)
    if HAS_NORM:
        mean = tl.sum(along_ones, axis=1) / WIDTH
        squares = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
        for piece in tl.static_range(PIECES):
            centred = tl.where(piece * BLOCK_WIDTH + in_tile < WIDTH, x[piece] - mean[:, None], 0.0)
            squares += centred * centred
        rstd = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / WIDTH + eps)
        tl.store(mean_ptr + rows, mean, mask=in_rows)
        tl.store(rstd_ptr + rows, rstd, mask=in_rows)
    for piece in tl.static_range(PIECES):
        columns = piece * BLOCK_WIDTH + in_tile
        mask = in_rows[:, None] & (columns < WIDTH)
        value = x[piece]
        if HAS_NORM:
            weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
            value = (value - mean[:, None]) * rstd[:, None] * weight
            if HAS_NORM_BIAS:
                value += tl.load(norm_bias_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
        if HAS_DROPOUT:
            keep = keep_tile(rows, piece * BLOCK_WIDTH, seed, seed_high, site, dropped_levels, BLOCK_ROWS, BLOCK_WIDTH)
            value = tl.where(keep, value * scale, 0.0)
        tl.store(out_ptr + start_offsets + columns, value.to(out_ptr.dtype.element_ty), mask=mask)


def embedding_forward(
    tables: EmbeddingTables, tokens: Tokens, dropout: CounterDropout, tile: Tile | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward kernel. `tile` defaults to `reducing_row_tile(W)`.

    Returns:
        The embedded tokens [T, W], their ids, int32 [T], and mean and rstd, fp32 [T] ([0] without a LayerNorm).
    """
    word = tables.word
    width, device = word.shape[1], word.device
    tile = (tile or reducing_row_tile(width)).fitted(tokens.longest, device)
    out = torch.empty(tokens.total, width, dtype=word.dtype, device=device)
    row_ids = torch.empty(tokens.total, dtype=torch.int32, device=device)
    count = 0 if tables.norm_weight is None else tokens.total
    mean, rstd = (torch.empty(count, dtype=torch.float32, device=device) for _ in range(2))
    if tokens.total:
        embedding_forward_kernel[(tokens.sequences * ceil_div(tokens.longest, tile.rows),)](
            tokens.input_ids,
            norm_bias_ptr=word if tables.norm_bias is None else tables.norm_bias,
            out_ptr=out,
            row_ids_ptr=row_ids,
            mean_ptr=mean,
            rstd_ptr=rstd,
            vocabulary=len(word),
            eps=tables.eps,
            PIECES=tile.pieces,
            **ASSERTIONS,
            **tokens.arguments,
            **table_arguments(tables),
            **dropout_arguments(dropout),
            **tile.launch_arguments(width),
        )
    return out, row_ids, mean, rstd
