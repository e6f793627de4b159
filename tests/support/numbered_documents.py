"""Tokenized documents whose tokens count up, and what all rows made of them have in common."""

import numpy as np

from bert_pld.data.fast_tokenizer import RowTemplate
from data_prep.rows.tokens import TokenizedDocuments

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
TEMPLATE = RowTemplate(0, 2, (3,), 3)
FIRST_ID = 10


def numbered_documents(segment_lengths):
    """Documents whose tokens count up from 10, so that a token identifies its position."""
    flat = [length for document in segment_lengths for length in document]
    return TokenizedDocuments(
        tokens=np.arange(FIRST_ID, FIRST_ID + sum(flat), dtype=np.uint32),
        segment_starts=np.concatenate([[0], np.cumsum(flat)]).astype(np.int64),
        document_starts=np.concatenate([[0], np.cumsum([len(d) for d in segment_lengths])]).astype(np.int64),
    )


def random_documents(count, segments, lengths, seed=0):
    draw = np.random.default_rng(seed)
    return numbered_documents([draw.integers(*lengths, size=draw.integers(*segments)).tolist() for _ in range(count)])


def document_of(documents, ids):
    bounds = documents.segment_starts[documents.document_starts]
    return np.searchsorted(bounds, np.asarray(ids, np.int64) - FIRST_ID, side="right") - 1


def assert_framed_and_padded(rows, seq_length):
    ids, length = rows["input_ids"], rows["length"]
    assert np.all(ids[:, 0] == SPECIAL["cls"])
    assert np.all(ids[np.arange(len(ids)), length - 1] == SPECIAL["sep"])
    assert np.all((ids == SPECIAL["pad"]) == (np.arange(seq_length) >= length[:, None]))
