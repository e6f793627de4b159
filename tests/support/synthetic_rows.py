"""Synthetic rows of [CLS] A [SEP] B [SEP] over a small vocabulary."""

import numpy as np

from bert_pld.data.documents import pack_starts
from bert_pld.data.shards import NO_PAIR

SPECIAL_TOKENS = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}


def make_entries(size):
    """Return a vocabulary; every third ordinary entry continues a word."""
    names = {identity: f"[{name.upper()}]" for name, identity in SPECIAL_TOKENS.items()}
    return [names.get(i, f"##p{i}" if i % 3 == 0 else f"w{i}") for i in range(size)]


def make_rows(generator, count, seq_length, vocabulary_size, objective="mlm+nsp", full=False):
    """Return the columns of `count` rows; a fifth of the rows are padded, unless `full`."""
    short = generator.integers(8, seq_length, count)
    length = np.where((generator.random(count) < 0.2) & (not full), short, seq_length)
    ids = generator.integers(104, vocabulary_size, (count, seq_length))
    ids[generator.random(ids.shape) < 0.01] = SPECIAL_TOKENS["unk"]
    ids[:, 0] = SPECIAL_TOKENS["cls"]
    ids[np.arange(count), length - 1] = SPECIAL_TOKENS["sep"]
    if objective == "mlm":
        segment_b_start, label = length, np.full(count, NO_PAIR)
    else:
        segment_b_start, label = length // 2, generator.integers(0, 2, count)
        ids[np.arange(count), segment_b_start - 1] = SPECIAL_TOKENS["sep"]
    ids[np.arange(seq_length) >= length[:, None]] = SPECIAL_TOKENS["pad"]
    return {"input_ids": ids, "length": length, "segment_b_start": segment_b_start, "next_sentence_label": label}


def with_documents(rows, generator):
    """Return rows of objective mlm cut into documents, each `[CLS] … [SEP]` of at least three tokens."""
    ids, length = rows["input_ids"].copy(), rows["length"]
    is_start = np.zeros(ids.shape, bool)
    is_start[:, 0] = True
    for row, last in enumerate(length):
        for start in range(3, last - 3, 3):
            is_start[row, start] = generator.random() < 0.3
    ids[is_start] = SPECIAL_TOKENS["cls"]
    ids[:, :-1][is_start[:, 1:]] = SPECIAL_TOKENS["sep"]
    return {**rows, "input_ids": ids, "document_starts": pack_starts(is_start)}
