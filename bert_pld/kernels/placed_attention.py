"""Attention between rotated heads of flattened tokens, everywhere or within a window of positions.

Whole sequences in 16 bits on a GPU use torch's variable-length FlashAttention kernel, whose window counts rows. Where a
block runs on some tokens only, rows are no longer positions: there a local block uses torch's
scaled_dot_product_attention with a mask that is computed from the positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from bert_pld.kernels.attention import runs_packed
from bert_pld.kernels.documents import same_document
from bert_pld.kernels.layout import TokenLayout
from bert_pld.kernels.reference_attention import attend


@dataclasses.dataclass(frozen=True)
class Places:
    """The positions of the tokens that a block runs on, for its kind of attention."""

    positions: Tensor
    """int32 [K]: each token's position in its sequence or document."""
    cosines: Tensor
    """fp32 [S, D / 2]: of the rotary angles of every position."""
    sines: Tensor
    reach: int | None
    """Largest distance between tokens that see each other; None: all do."""
    are_neighbours: bool
    """Whether the tokens are whole sequences, so that distances between rows are those between positions."""


def placed_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, dropout: float, places: Places
) -> Tensor:
    """Attend within each sequence, or within each document if there are any: three tensors [K, N, D] → [K, N · D].

    `dropout` is the dropout probability of the attention weights, drawn from torch's generator of the device.
    """
    rows, _, width = query.shape
    if not rows:
        return query.flatten(1)
    if (places.reach is None or places.are_neighbours) and runs_packed(query.device, query.dtype, width):
        return _packed(query, key, value, layout, dropout, places.reach)
    document = None if layout.documents is None else layout.documents.of_tokens(rows)
    tensors: tuple[Tensor, ...] = (query, key, value, places.positions)
    index = None
    shape: Sequence[int]
    if layout.cumulative_lengths is None:
        shape = len(layout.lengths), layout.padded_length
    else:
        columns = torch.arange(layout.longest, device=query.device)
        tokens = columns < layout.cumulative_lengths.diff()[:, None]
        shape, index = tokens.shape, torch.nonzero_static(tokens.flatten(), size=rows).squeeze(1)
        tensors = tuple(part.new_zeros(tokens.numel(), *part.shape[1:]).index_copy(0, index, part) for part in tensors)
        # Padding is a document of its own, so that no token sees it and it sees itself.
        own = torch.zeros_like(index) if document is None else document
        document = own.new_full((tokens.numel(),), -1).index_copy(0, index, own)
    query, key, value, positions = (part.unflatten(0, shape) for part in tensors)
    mask = None if document is None else same_document(document.view(shape))
    if places.reach is not None:
        is_near = (positions[:, :, None] - positions[:, None, :]).abs() <= places.reach
        mask = is_near if mask is None else mask & is_near
    context = attend(query, key, value, mask, dropout).flatten(0, 1)
    return context if index is None else context.index_select(0, index)


def _packed(
    query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, dropout: float, reach: int | None
) -> Tensor:
    """Run torch's variable-length FlashAttention kernel with a window of rows on both sides: [K, N, D] → [K, N · D]."""
    edges, longest = layout.cumulative_lengths, layout.longest
    if layout.documents is not None:
        edges, longest = layout.documents.edges, layout.documents.longest
    elif edges is None:
        edges = torch.arange(len(layout.lengths) + 1, dtype=torch.int32, device=query.device) * layout.padded_length
    context = torch.ops.aten._flash_attention_forward(
        query, key, value, edges, edges, longest, longest, dropout, False, False,
        window_size_left=reach, window_size_right=reach,
    )[0]  # fmt: skip
    return context.flatten(1)
