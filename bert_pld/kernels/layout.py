"""The positions of the tokens of B sequences in flattened hidden states [T, H], without padding if there is any.

Everything that determines shapes (lengths, the sequences that a block keeps) stays on the host, so nothing here waits
for the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bert_pld.kernels.documents import Documents, document_edges, documents_in_rows
from bert_pld.kernels.filling import Filling
from bert_pld.kernels.reference import RowMap
from bert_pld.pld.subsets import upload

_ABSENT = np.int32(-(2**30))
"""Placeholder for the distance from stream row to compact row, for a sequence that is not kept."""


@dataclasses.dataclass(frozen=True)
class FixedRows:
    """Memory from which captured blocks read the rows that they run on."""

    maps: Tensor
    """int32 [different subsets, T]: `RowMap.compact_row` of the blocks that run on each of them."""
    edges: Tensor
    """int32 [1 + different subsets, B + F + 1]: `TokenLayout.cumulative_lengths` of the stream, then of each subset."""


@dataclasses.dataclass(frozen=True)
class TokenLayout:
    """The layout of B sequences of at most S tokens, stored one after the other.

    Fillers may follow them (`filling.py`).
    """

    lengths: NDArray[np.int64]
    """[B + F]: number of rows of each sequence in the hidden states, then of each of F sequences of fillers."""
    padded_length: int
    """S, the sequence length with padding."""
    device: torch.device
    cumulative_lengths: Tensor | None = None
    """int32 [B + F + 1]: first row of each sequence, then T; None if all sequences have S rows."""
    positions: Tensor | None = None
    """int64 [T]: index of each row into the flattened [B · S]; None if the two are equal."""
    row_of_position: Tensor | None = None
    """int64 [B · S]: the inverse of `positions`, undefined at padding; None if the two are equal."""
    documents: Documents | None = None
    """The documents in the sequences; None: each token attends to its whole sequence."""
    filling: Filling | None = None
    """The number of rows that fillers bring the layout to; None: there are no fillers, and F is 0."""

    @property
    def total(self) -> int:
        """T, the number of rows."""
        return int(self.lengths.sum())

    @property
    def longest(self) -> int:
        """Number of rows of the longest sequence; with fillers, a number that is the same for every micro-batch."""
        return int(self.lengths.max(initial=0)) if self.filling is None else self.padded_length

    @property
    def sequences(self) -> int:
        """B."""
        return len(self.lengths) - (0 if self.filling is None else self.filling.sequences)

    @property
    def tokens(self) -> int:
        """Number of rows that are no fillers."""
        return int(self.lengths[: self.sequences].sum())

    @property
    def first_rows(self) -> Tensor:
        """int64 [B]: row of each sequence's first token."""
        if self.cumulative_lengths is not None:
            return self.cumulative_lengths[: self.sequences].long()
        return torch.arange(len(self.lengths), device=self.device) * self.padded_length

    @property
    def token_positions(self) -> Tensor:
        """int64 [T]: position of each token in its document, or in its sequence if there are no documents."""
        if self.documents is not None:
            return self.documents.positions(self.total)
        index = torch.arange(self.total, device=self.device) if self.positions is None else self.positions
        return index % self.padded_length

    def rows_of(self, positions: Tensor) -> Tensor:
        """Return the rows of tokens that are given by their index into the flattened [B · S]."""
        return positions if self.row_of_position is None else self.row_of_position.index_select(0, positions)

    def chosen_rows(self, positions: Tensor, with_first: bool) -> Tensor:
        """Return the rows of `rows_of`, then, with `with_first`, those of each sequence's first token."""
        rows = self.rows_of(positions)
        return torch.cat([rows, self.first_rows]) if with_first else rows

    def pack(self, values: Tensor) -> Tensor:
        """Remove padding: [B, S, …] → [T, …]."""
        flat = values.flatten(0, 1)
        return flat if self.positions is None else flat.index_select(0, self.positions)

    def pad(self, values: Tensor) -> Tensor:
        """Add padding with zeros: [T, …] → [B, S, …]."""
        shape = (self.sequences, self.padded_length, *values.shape[1:])
        if self.positions is None:
            return values.view(shape)
        positions, values = self.positions[: self.tokens], values[: self.tokens]
        return values.new_zeros(shape).flatten(0, 1).index_copy(0, positions, values).view(shape)


def padded_layout(input_ids: Tensor, document_lengths: NDArray[np.int64] | None = None) -> TokenLayout:
    """Return the layout of ids [B, S] in which every sequence has S rows; `document_lengths` as in `packed_layout`."""
    batch, padded_length = input_ids.shape
    lengths, device = np.full(batch, padded_length, np.int64), input_ids.device
    documents = None if document_lengths is None else documents_in_rows(document_lengths, lengths, device)
    return TokenLayout(lengths, padded_length, device, documents=documents)


def packed_layout(
    attention_mask: Tensor,
    lengths: NDArray[np.int64] | None,
    document_lengths: NDArray[np.int64] | None = None,
    filling: Filling | None = None,
) -> TokenLayout:
    """Return the layout in which only tokens have rows, not padding.

    Args:
        attention_mask: bool [B, S], True for tokens, which come before the padding.
        lengths: [B], number of tokens of each sequence, on the host; None reads the mask, which waits for its device. A
            ValueError then names a row with padding before a token: its rows here would not be its positions.
        document_lengths: [D], tokens of each document, sequence by sequence, on the host; None: there are no documents.
        filling: fillers that follow, which must fit; None: there are none.
    """
    padded_length = attention_mask.shape[1]
    if lengths is None:
        lengths = _lengths_of(attention_mask)
    flat, device, tokens = attention_mask.flatten(), attention_mask.device, int(lengths.sum())
    positions = torch.nonzero_static(flat, size=tokens).squeeze(1)
    documents = None if document_lengths is None else documents_in_rows(document_lengths, lengths, device)
    if filling is not None:
        fillers = filling.rows() - tokens
        lengths = np.concatenate([lengths, filling.lengths(fillers)])
        positions = F.pad(positions, (0, fillers))  # They repeat the first token.
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return TokenLayout(
        lengths,
        padded_length,
        device,
        cumulative_lengths=upload(starts, device),
        positions=positions,
        row_of_position=flat.cumsum(0) - 1,
        documents=documents,
        filling=filling,
    )


def _lengths_of(attention_mask: Tensor) -> NDArray[np.int64]:
    """Return the number of tokens of each row, [B], in one copy from the mask's device."""
    places = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    counts, ends = torch.stack([attention_mask.sum(1), (attention_mask * places).amax(1)]).cpu().numpy()
    if (counts != ends).any():
        row = int((counts != ends).argmax())
        raise ValueError(
            f"attention_mask: row {row} has padding before a token; padding must be at the end of each row"
        )
    return counts


def kept_layouts(
    layout: TokenLayout, kept: Sequence[NDArray[np.int64] | None]
) -> list[tuple[TokenLayout, RowMap | None]]:
    """Compute for each block the layout of the sequences that it keeps and their rows in the stream.

    Args:
        layout: the stream's layout.
        kept: for each block the kept sequences, ascending; None: all sequences.

    Returns:
        Layout and row map of each block, uploaded in one copy; the row map is None if all sequences are kept.
    """
    some = [rows for rows in kept if rows is not None]
    if not some:
        return [(layout, None)] * len(kept)
    packed, documents = layout.cumulative_lengths is not None, layout.documents
    shifts = np.full((len(some), len(layout.lengths)), _ABSENT, np.int32)
    starts = np.cumsum(layout.lengths) - layout.lengths
    compact_starts: list[NDArray[np.int32]] = []
    for shift, rows in zip(shifts, some, strict=True):
        edges = np.concatenate([[0], np.cumsum(layout.lengths[rows])])
        shift[rows] = edges[:-1] - starts[rows]
        compact_starts.append(edges.astype(np.int32))
    lengths = [] if documents is None else [documents.within_rows(rows) for rows in some]
    parts = [*(compact_starts if packed else []), *(document_edges(own).astype(np.int32) for own in lengths)]
    uploaded = upload(np.concatenate([shifts.ravel(), *parts]), layout.device)
    maps = iter(_row_maps(uploaded[: shifts.size].view(shifts.shape), layout))
    edges_on_device = uploaded[shifts.size :].split([len(part) for part in parts])
    cumulative, edges_of_documents = iter(edges_on_device), iter(edges_on_device[len(some) if packed else 0 :])
    own_lengths = iter(lengths)

    result: list[tuple[TokenLayout, RowMap | None]] = []
    for block_rows in kept:
        if block_rows is None:
            result.append((layout, None))
            continue
        own = TokenLayout(
            layout.lengths[block_rows],
            layout.padded_length,
            layout.device,
            cumulative_lengths=next(cumulative) if packed else None,
            documents=None
            if documents is None
            else dataclasses.replace(documents, lengths=next(own_lengths), edges=next(edges_of_documents)),
        )
        result.append((own, RowMap(next(maps), own.total)))
    return result


def token_layouts(
    layout: TokenLayout,
    subsets: Sequence[tuple[Tensor, NDArray[np.int64]] | tuple[None, None]],
    shares: Sequence[float] = (),
    memory: FixedRows | None = None,
) -> list[tuple[TokenLayout, RowMap | None]]:
    """Compute for each subset of the tokens its layout and its rows in the stream; blocks on one subset share these.

    Args:
        layout: the stream's layout.
        subsets: for each subset the kept tokens, bool [B, S], and on the host their number in each sequence, [B];
            (None, None): all tokens.
        shares: for each subset the share of the tokens in it; needed where the stream has fillers.
        memory: where row maps and cumulative lengths are put; None allocates it.

    Returns:
        Layout and row map of each subset; the row map is None if all tokens are kept.
    """
    masks = [mask for mask, _ in subsets if mask is not None]
    some = [count for _, count in subsets if count is not None]
    if not masks:
        return [(layout, None)] * len(subsets)
    flat, filling = torch.stack(masks).flatten(1), layout.filling
    if layout.positions is not None:
        flat = flat.index_select(1, layout.positions)
    if filling is not None:
        of_some = [share for (mask, _), share in zip(subsets, shares, strict=True) if mask is not None]
        flat, some = _with_fillers(layout, filling, flat, some, list(map(filling.rows, of_some)))
    kept_before = flat.cumsum(1, dtype=torch.int32)
    maps = torch.where(flat, kept_before - 1, -1)
    compact_rows = iter((maps if memory is None else memory.maps.copy_(maps)).unbind())
    documents = layout.documents
    edges_of_documents: Iterator[Tensor] = iter(())
    if documents is not None:
        # How many of a document's tokens a block keeps is known on the device alone, and so are their edges.
        edges_of_documents = iter(F.pad(kept_before, (1, 0)).index_select(1, documents.edges).unbind())
    packed = layout.cumulative_lengths is not None
    cumulative: Iterator[Tensor | None] = iter([None] * len(some))
    if packed:
        edges = np.stack([np.concatenate([[0], np.cumsum(count)]) for count in some]).astype(np.int32)
        uploaded = upload(edges, layout.device)
        cumulative = iter((uploaded if memory is None else memory.edges[1:].copy_(uploaded)).unbind())

    result: list[tuple[TokenLayout, RowMap | None]] = []
    counts = iter(some)
    for mask, _ in subsets:
        if mask is None:
            result.append((layout, None))
            continue
        count = next(counts)
        longest = int(count.max(initial=0)) if filling is None else layout.padded_length
        own_documents = None
        if documents is not None:
            limit = min(documents.longest, longest)
            own_documents = dataclasses.replace(documents, edges=next(edges_of_documents), longest=limit)
        own = TokenLayout(count, longest, layout.device, next(cumulative), documents=own_documents, filling=filling)
        result.append((own, RowMap(next(compact_rows), own.total)))
    return result


def _with_fillers(
    layout: TokenLayout, filling: Filling, kept: Tensor, counts: Sequence[NDArray[np.int64]], rows: Sequence[int]
) -> tuple[Tensor, list[NDArray[np.int64]]]:
    """Add to the tokens that blocks keep, bool [blocks, T], as many fillers as bring each block to its number of rows.

    Returns the rows of the stream that each block keeps, and the lengths of its sequences, [B + F].
    """
    fillers = [total - int(count.sum()) for total, count in zip(rows, counts, strict=True)]
    number = torch.arange(layout.total, device=layout.device) - layout.tokens  # of the filler; negative for tokens
    kept = torch.where(number < 0, kept, number < upload(np.array(fillers, np.int32), layout.device)[:, None])
    return kept, [np.concatenate([count, filling.lengths(more)]) for count, more in zip(counts, fillers, strict=True)]


def _row_maps(shifts: Tensor, layout: TokenLayout) -> Tensor:
    """Return `RowMap.compact_row` of each block, int32 [blocks, T], from the distances, int32 [blocks, B]."""
    if layout.cumulative_lengths is None:
        per_row = shifts.repeat_interleave(layout.padded_length, dim=1)
    else:
        lengths = layout.cumulative_lengths.diff()
        per_row = shifts.repeat_interleave(lengths, dim=1, output_size=layout.total)
    rows = torch.arange(layout.total, dtype=torch.int32, device=layout.device)
    return torch.where(per_row == int(_ABSENT), -1, rows + per_row)
