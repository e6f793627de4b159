"""Where documents start in rows that hold several of them: one bit for each position of a row.

A row's first document starts at position 0, and each ends where the next one or the row's padding begins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
Int64Array = NDArray[np.int64]


def pack_starts(is_start: BoolArray) -> NDArray[np.uint8]:
    """Return the column `document_starts`, `[N, ⌈S/8⌉]`, for bool `[N, S]`."""
    return np.packbits(is_start, axis=1, bitorder="little")


def unpack_starts(column: NDArray[Any], seq_length: int) -> BoolArray:
    """Return whether a document starts at each position, bool `[N, S]`."""
    return np.unpackbits(column.astype(np.uint8, copy=False), axis=1, count=seq_length, bitorder="little").view(
        np.bool_
    )


def misplaced_starts(is_start: BoolArray, lengths: NDArray[np.integer[Any]]) -> BoolArray:
    """Return which rows, `[N]`, do not start with a document, or have one that starts in the padding."""
    in_padding = is_start & (np.arange(is_start.shape[1]) >= np.asarray(lengths)[:, None])
    return ~is_start[:, 0] | in_padding.any(axis=1)


def document_lengths(is_start: BoolArray, lengths: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return the length of each document, `[D]`, row by row, and the number of documents in each row, `[N]`."""
    row, position = np.nonzero(is_start)
    before = np.cumsum(lengths) - lengths
    starts = before[row] + position  # counted in tokens without padding
    return np.diff(starts, append=lengths.sum()), is_start.sum(axis=1)
