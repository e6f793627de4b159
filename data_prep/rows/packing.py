"""Rows of several documents that do not attend to each other, each with a [CLS] and a [SEP] of its own.

A document that fits into a row is never cut. A longer one is cut into full rows and a remainder. Remainders and short
documents are placed by best fit: the longest first, each into the row with the least room that is enough.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

from bert_pld.data.documents import document_lengths, pack_starts, unpack_starts
from bert_pld.data.fast_tokenizer import RowTemplate
from bert_pld.data.shards import DOCUMENT_STARTS, NO_PAIR, Rows
from data_prep.rows.tokens import TokenizedDocuments

_FRAME = 2
"""[CLS] and [SEP]."""


def document_rows(documents: TokenizedDocuments, seq_length: int, template: RowTemplate) -> Rows:
    """Return rows `[CLS] document [SEP] [CLS] document [SEP] … [PAD]`, as the columns of a shard.

    Every token is in exactly one row. Rows are in the order of their first documents, and so are documents in a row.
    """
    first, length = _pieces(documents.segment_starts[documents.document_starts], seq_length - _FRAME)
    row = best_fit(length + _FRAME, seq_length)
    order = np.argsort(row, kind="stable")
    first, length, row = first[order], length[order], row[order]
    row_lengths = np.bincount(row, weights=length + _FRAME).astype(np.int64)
    ends = np.cumsum(length + _FRAME)
    # From a piece's place among all framed tokens to its place in the flattened rows.
    begin = ends - length - _FRAME + row * seq_length - (np.cumsum(row_lengths) - row_lengths)[row]
    count = len(row_lengths)
    input_ids = np.full(count * seq_length, template.pad_id, np.uint32)
    input_ids[begin] = template.cls_id
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    input_ids[np.repeat(begin + 1, length) + within] = documents.tokens[np.repeat(first, length) + within]
    input_ids[begin + length + 1] = template.sep_id
    is_start = np.zeros(count * seq_length, np.bool_)
    is_start[begin] = True
    return {
        "input_ids": input_ids.reshape(count, seq_length),
        "length": row_lengths,
        "segment_b_start": row_lengths.copy(),
        "next_sentence_label": np.full(count, NO_PAIR, np.int8),
        DOCUMENT_STARTS: pack_starts(is_start.reshape(count, seq_length)),
    }


def count_documents(rows: Rows, seq_length: int) -> dict[str, int]:
    """Return how many documents or parts of one the rows hold, and the sum of the squares of their lengths."""
    is_start = unpack_starts(rows[DOCUMENT_STARTS], seq_length)
    lengths, _ = document_lengths(is_start, np.asarray(rows["length"], np.int64))
    return {"parts": len(lengths), "squares": int((lengths * lengths).sum())}


def _pieces(bounds: NDArray[np.int64], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first token and the length of each piece of at most `width` tokens."""
    lengths = np.diff(bounds)
    parts = -(-lengths // width)
    part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    first = np.repeat(bounds[:-1], parts) + part * width
    return first, np.minimum(np.repeat(bounds[1:], parts) - first, width)


def best_fit(sizes: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Return the row of each piece, [pieces]; rows are numbered in the order of their first pieces.

    `sizes` has the tokens of each piece. No piece has more than `capacity` tokens, and no row gets more.
    """
    place = np.empty(len(sizes), np.int64)
    rows_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms: list[int] = []  # ascending: those that some row has
    count = 0
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        at = bisect_left(rooms, size)
        if at == len(rooms):
            row, left, count = count, capacity - size, count + 1
        else:
            room = rooms[at]
            row, left = rows_by_room[room].pop(), room - size
            if not rows_by_room[room]:
                del rooms[at]
        place[piece] = row
        if left:
            if not rows_by_room[left]:
                insort(rooms, left)
            rows_by_room[left].append(row)
    first_piece = np.full(count, len(sizes), np.int64)
    np.minimum.at(first_piece, place, np.arange(len(sizes)))
    number = np.empty(count, np.int64)
    number[np.argsort(first_piece)] = np.arange(count)
    return number[place]
