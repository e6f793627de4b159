"""The published approach to data preparation, written from its description: all in Python, with static masks.

As in BERT's original script and those derived from it: every sentence is tokenized in Python; sentences of a document
fill a pair of segments up to the target length, and in half of the pairs the second segment comes from a random
document; 15 % of the tokens are masked (80 % `[MASK]`, 10 % a random token, 10 % kept), differently in each of
`DUPE_FACTOR` passes; rows are written to gzip-compressed HDF5. Only the approach is theirs, not the code.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

DUPE_FACTOR = 5
_SHORT_SEQUENCES = 0.1
_MASK_SHARE = 0.15
Instance = tuple[list[str], int, bool]
"""(tokens with `[CLS]` and `[SEP]`, index at which segment B begins, whether B is random)."""


def write_static_shard(
    documents: list[list[str]],
    tokenize: Callable[[str], list[str]],
    entries: dict[str, int],
    path: Path,
    seq_length: int,
) -> int:
    """Write documents, which are lists of sentences, to one HDF5 file in NVIDIA's format.

    `tokenize` splits a sentence into word pieces; `entries` gives their ids. Returns the number of tokens of the text;
    a token that is written several times counts once.
    """
    draw = random.Random(0)
    tokenized = [[pieces for sentence in document if (pieces := tokenize(sentence))] for document in documents]
    tokenized = [document for document in tokenized if document]
    words = list(entries)
    rows: list[dict[str, Any]] = []
    for _ in range(DUPE_FACTOR):
        for number in range(len(tokenized)):
            for instance in _instances(tokenized, number, seq_length, draw):
                rows.append(_masked_row(instance, entries, words, seq_length, draw))
    draw.shuffle(rows)
    _write(rows, path)
    return sum(len(sentence) for document in tokenized for sentence in document)


def _instances(documents: list[list[list[str]]], number: int, seq_length: int, draw: random.Random) -> list[Instance]:
    """Make the pairs of one document."""
    document, most = documents[number], seq_length - 3
    target = draw.randint(2, most) if draw.random() < _SHORT_SEQUENCES else most
    found: list[Instance] = []
    chunk: list[list[str]] = []
    position = size = 0
    while position < len(document):
        chunk.append(document[position])
        size += len(document[position])
        if position == len(document) - 1 or size >= target:
            cut = draw.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
            first = [piece for sentence in chunk[:cut] for piece in sentence]
            is_random = len(documents) > 1 and (len(chunk) == 1 or draw.random() < 0.5)
            if is_random:
                second = _from_another(documents, number, target - len(first), draw)
                position -= len(chunk) - cut  # sentences that were not used come next
            else:
                second = [piece for sentence in chunk[cut:] for piece in sentence]
            _shorten(first, second, most, draw)
            if first and second:
                found.append((["[CLS]", *first, "[SEP]", *second, "[SEP]"], len(first) + 2, is_random))
            chunk, size = [], 0
        position += 1
    return found


def _from_another(documents: list[list[list[str]]], number: int, wanted: int, draw: random.Random) -> list[str]:
    other = draw.randrange(len(documents) - 1)
    document = documents[other + (other >= number)]
    pieces: list[str] = []
    for sentence in document[draw.randrange(len(document)) :]:
        pieces += sentence
        if len(pieces) >= wanted:
            break
    return pieces


def _shorten(first: list[str], second: list[str], most: int, draw: random.Random) -> None:
    """Remove single tokens from a random end of the longer segment until both fit."""
    while len(first) + len(second) > most:
        longer = first if len(first) > len(second) else second
        longer.pop(0 if draw.random() < 0.5 else -1)


def _masked_row(
    instance: Instance, entries: dict[str, int], words: list[str], seq_length: int, draw: random.Random
) -> dict[str, Any]:
    pieces, second, is_random = instance
    pieces = list(pieces)
    candidates = [index for index, piece in enumerate(pieces) if piece not in ("[CLS]", "[SEP]")]
    draw.shuffle(candidates)
    most = round(_MASK_SHARE * seq_length) + 1
    chosen = sorted(candidates[: min(most, max(1, round(len(pieces) * _MASK_SHARE)))])
    originals = [entries[pieces[index]] for index in chosen]
    for index in chosen:
        if draw.random() < 0.8:
            pieces[index] = "[MASK]"
        elif draw.random() < 0.5:
            pieces[index] = draw.choice(words)
    unused, predictions = [0] * (seq_length - len(pieces)), [0] * (most - len(chosen))
    return {
        "input_ids": [entries[piece] for piece in pieces] + unused,
        "input_mask": [1] * len(pieces) + unused,
        "segment_ids": [int(index >= second) for index in range(len(pieces))] + unused,
        "masked_lm_positions": chosen + predictions,
        "masked_lm_ids": originals + predictions,
        "next_sentence_labels": int(is_random),
    }


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    wide = ("input_ids", "masked_lm_positions", "masked_lm_ids")
    with h5py.File(path, "w") as file:
        for key in rows[0]:
            values = np.array([row[key] for row in rows], dtype=np.int32 if key in wide else np.int8)
            file.create_dataset(key, data=values, compression="gzip")
