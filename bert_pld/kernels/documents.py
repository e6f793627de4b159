"""Rows that hold several documents: which tokens attend to each other, and where each token is in its document.

Documents fill the tokens of their rows without gaps, so their lengths say everything. The lengths stay on the host,
and nothing here waits for the device.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bert_pld.pld.subsets import upload


@dataclasses.dataclass(frozen=True)
class Documents:
    """The documents in T tokens without padding; a token attends to its own document alone."""

    lengths: NDArray[np.int64]
    """[D], on the host: tokens of each document, row by row."""
    row: NDArray[np.int64]
    """[D], on the host: the row that each document is in."""
    edges: Tensor
    """int32 [D + 1], on the device: first token of each document, then T. A block may keep no token of a document."""
    longest: int
    """A length that no document exceeds."""

    def of_tokens(self, total: int) -> Tensor:
        """Return the document of each of the T tokens, int64 [T]."""
        # Counted, because documents without a token start where the next one does.
        starts = self.edges[:-1].long()
        counts = torch.zeros(total + 1, dtype=torch.int64, device=starts.device)
        return counts.index_add_(0, starts, torch.ones_like(starts))[:total].cumsum(0) - 1

    def positions(self, total: int) -> Tensor:
        """Return each token's position in its document, int64 [T]."""
        return torch.arange(total, device=self.edges.device) - self.edges.index_select(0, self.of_tokens(total))

    def within_rows(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the lengths of the documents in some rows, which are ascending."""
        return self.lengths[np.isin(self.row, kept)]


def documents_in_rows(lengths: NDArray[np.int64], row_lengths: NDArray[np.int64], device: torch.device) -> Documents:
    """Return documents of these lengths [D] in rows of `row_lengths` [B] tokens; both are on the host."""
    edges = upload(document_edges(lengths).astype(np.int32), device)
    return Documents(lengths, rows_of_documents(lengths, row_lengths), edges, int(lengths.max()))


def document_edges(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return [D + 1]: the first token of each document, then the number of tokens."""
    return np.concatenate([[0], np.cumsum(lengths)])


def rows_of_documents(lengths: NDArray[np.int64], row_lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row of each document, [D]; a ValueError says that they do not fill the rows."""
    edges, ends = document_edges(lengths), np.cumsum(row_lengths)
    if edges[-1] != ends[-1] or not np.isin(ends, edges).all():
        raise ValueError(f"document_lengths: {edges[-1]} tokens that do not fill rows of {row_lengths.tolist()} tokens")
    return np.searchsorted(ends, edges[:-1], side="right")


def place_documents(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    row_lengths: NDArray[np.int64] | None,
    lengths: NDArray[np.int64],
) -> tuple[Tensor, Tensor]:
    """Return each token's document in the micro-batch and its position there, with padding in place.

    Args:
        input_ids: [B, S].
        attention_mask: bool [B, S], True for tokens; None if no row has padding.
        row_lengths: [B], tokens of each row, on the host; None reads the mask, which waits for its device.
        lengths: [D], tokens of each document, row by row, on the host.

    Returns:
        Two int64 [B, S]; padding is in the document -1, at position 0.
    """
    shape, device = input_ids.shape, input_ids.device
    if row_lengths is None:
        row_lengths = np.full(shape[0], shape[1]) if attention_mask is None else attention_mask.sum(1).cpu().numpy()
    edges, padding = document_edges(lengths), shape[1] - row_lengths
    before = (np.cumsum(padding) - padding)[rows_of_documents(lengths, row_lengths)]
    starts = upload(edges[:-1] + before, device)
    documents = torch.zeros(shape.numel(), dtype=torch.int64, device=device).index_fill_(0, starts, 1).cumsum(0) - 1
    positions = torch.arange(shape.numel(), device=device) - starts.index_select(0, documents)
    documents, positions = documents.view(shape), positions.view(shape)
    if attention_mask is None:
        return documents, positions
    return documents.masked_fill(~attention_mask, -1), positions * attention_mask


class WithinDocuments(NamedTuple):
    """Who attends to whom in rows of several documents: the tokens of a document, or those of them that are near."""

    documents: Tensor
    """int64 [B, S]: the document of each token, numbered differently in all rows."""
    positions: Tensor | None = None
    """int64 [B, S]: each token's position in its document, ascending; needed with `reach`."""
    reach: int | None = None
    """Largest distance between tokens that attend to each other; None: any."""

    def mask(self) -> Tensor:
        """Return which tokens attend to each other, bool [B, S, S]."""
        same = same_document(self.documents)
        if self.positions is None or self.reach is None:
            return same
        return same & _near(self.positions, self.reach)

    def runs(self) -> tuple[list[int], list[Tensor | None]]:
        """Return the lengths of the documents in the flattened rows, and a mask [1, n, n] for each that needs one.

        The lengths are read from the device.
        """
        lengths = torch.unique_consecutive(self.documents, return_counts=True)[1]
        if self.positions is None or self.reach is None:
            return lengths.tolist(), [None] * len(lengths)
        positions, ends = self.positions.flatten(), lengths.cumsum(0) - 1
        spans = positions.index_select(0, ends) - positions.index_select(0, ends + 1 - lengths)
        parts = zip(positions.split(lengths.tolist()), spans.tolist(), strict=True)
        masks = [_near(own[None], self.reach) if span > self.reach else None for own, span in parts]
        return lengths.tolist(), masks


def _near(positions: Tensor, reach: int) -> Tensor:
    """Return which tokens are at most `reach` apart: int64 [B, S] → bool [B, S, S]."""
    return (positions[:, :, None] - positions[:, None, :]).abs() <= reach


def same_document(documents: Tensor) -> Tensor:
    """Return which tokens attend to each other: int64 [B, S] → bool [B, S, S]."""
    return documents[:, :, None] == documents[:, None, :]
