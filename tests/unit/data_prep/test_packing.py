"""Rows of documents that do not attend to each other: framed, uncut where they fit, packed tightly."""

import itertools

import numpy as np
import pytest
from numbered_documents import (
    SPECIAL,
    TEMPLATE,
    assert_framed_and_padded,
    document_of,
    numbered_documents,
    random_documents,
)

from bert_pld.data.documents import document_lengths, unpack_starts
from data_prep.rows.instances import packed_rows
from data_prep.rows.packing import best_fit, document_rows


def pieces_of(rows, seq_length):
    """The tokens of each document of each row, without [CLS] and [SEP]."""
    starts = unpack_starts(rows["document_starts"], seq_length)
    pieces = []
    for ids, length, is_start in zip(rows["input_ids"], rows["length"], starts, strict=True):
        edges = [*np.flatnonzero(is_start).tolist(), int(length)]
        pieces.append([ids[begin:end] for begin, end in itertools.pairwise(edges)])
    for piece in (piece for row in pieces for piece in row):
        assert (piece[0], piece[-1]) == (SPECIAL["cls"], SPECIAL["sep"])
    return [[piece[1:-1] for piece in row] for row in pieces]


@pytest.mark.parametrize("seq_length", [8, 61, 64])
def test_every_token_is_in_one_document_of_one_row(seq_length):
    documents = random_documents(300, (1, 12), (1, 12))
    rows = document_rows(documents, seq_length, TEMPLATE)
    assert_framed_and_padded(rows, seq_length)
    pieces = [piece for row in pieces_of(rows, seq_length) for piece in row]
    assert np.sort(np.concatenate(pieces)).tolist() == documents.tokens.tolist()
    assert all(len(set(document_of(documents, piece))) == 1 for piece in pieces)
    assert np.all(rows["segment_b_start"] == rows["length"])


def test_document_is_cut_only_if_it_is_longer_than_a_row():
    documents = random_documents(300, (1, 12), (1, 12))
    pieces = [piece for row in pieces_of(document_rows(documents, 64, TEMPLATE), 64) for piece in row]
    lengths = np.diff(documents.segment_starts[documents.document_starts])
    found = np.bincount([document_of(documents, piece[:1])[0] for piece in pieces])
    assert found.tolist() == (-(-lengths // 62)).tolist()
    assert (lengths > 62).sum() > 30


def test_rows_of_short_documents_are_at_least_as_full_as_those_of_the_stream():
    documents = random_documents(2000, (1, 2), (5, 60))
    rows = document_rows(documents, 128, TEMPLATE)
    assert rows["length"].mean() / 128 > 0.98
    frame = 2 * (np.diff(documents.document_starts) > 0).sum()
    assert len(rows["length"]) <= 1.02 * (len(documents.tokens) + frame) / 128
    assert len(packed_rows(documents, 128, TEMPLATE)["length"]) < len(rows["length"])


def test_rows_and_their_documents_follow_the_order_of_the_corpus():
    rows = pieces_of(document_rows(random_documents(200, (1, 3), (1, 30)), 64, TEMPLATE), 64)
    assert all(a[0] < b[0] for row in rows for a, b in itertools.pairwise(row))
    assert all(a[0][0] < b[0][0] for a, b in itertools.pairwise(rows))


def test_best_fit_chooses_the_row_with_the_least_room():
    assert best_fit(np.array([7, 5, 3, 5, 2]), 10).tolist() == [0, 1, 0, 1, 2]


def test_column_of_starts_gives_the_lengths_of_the_documents():
    rows = document_rows(numbered_documents([[3], [4], [9], [1]]), 12, TEMPLATE)
    assert rows["document_starts"].shape == (3, 2)
    assert rows["document_starts"].tolist() == [[0b00100001, 0], [1, 0], [1, 0]]
    lengths, counts = document_lengths(unpack_starts(rows["document_starts"], 12), rows["length"])
    assert (lengths.tolist(), counts.tolist()) == ([5, 6, 11, 3], [2, 1, 1])
