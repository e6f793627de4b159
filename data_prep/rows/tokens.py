"""Documents as token ids: one flat array, and the positions where segments and documents start."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_BATCH_SENTENCES = 4096


@dataclasses.dataclass
class TokenizedDocuments:
    """T tokens in S segments (sentences, or parts of long ones) in D documents; no segment or document is empty."""

    tokens: NDArray[np.uint32]
    """[T]"""
    segment_starts: NDArray[np.int64]
    """[S + 1] positions in `tokens`."""
    document_starts: NDArray[np.int64]
    """[D + 1] positions in `segment_starts`."""


def encode_documents(tokenizer: Tokenizer, documents: Iterable[list[str]]) -> TokenizedDocuments:
    """Tokenize sentence by sentence, without special tokens; sentences and documents without a token are left out."""
    pieces: list[NDArray[np.uint32]] = []
    lengths: list[int] = []
    sentences_per_document: list[int] = []
    batch: list[str] = []

    def flush() -> None:
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        counts = list(map(len, ids))
        pieces.append(np.fromiter(itertools.chain.from_iterable(ids), np.uint32, count=sum(counts)))
        lengths.extend(counts)
        batch.clear()

    for sentences in documents:
        sentences_per_document.append(len(sentences))
        batch += sentences
        if len(batch) >= _BATCH_SENTENCES:
            flush()
    flush()
    segment_lengths = np.array(lengths, np.int64)
    document_of_segment = np.repeat(np.arange(len(sentences_per_document)), sentences_per_document)[segment_lengths > 0]
    segment_lengths = segment_lengths[segment_lengths > 0]
    segments = np.bincount(document_of_segment, minlength=len(sentences_per_document))
    return TokenizedDocuments(np.concatenate(pieces), _starts(segment_lengths), _starts(segments[segments > 0]))


def split_long_segments(
    documents: TokenizedDocuments, longest: int, is_continuation: NDArray[np.bool_]
) -> TokenizedDocuments:
    """Cut segments of more than `longest` tokens into equal parts, and the only segment of a document into two.

    Afterwards every document of at least two tokens has two segments or more, as a sentence pair needs. A cut is placed
    at the nearest word start where the parts stay short enough. `is_continuation`, bool [vocabulary size], is true for
    entries that continue a word (`##…`).
    """
    starts = documents.segment_starts
    lengths = np.diff(starts)
    is_only_segment = np.zeros(len(lengths), bool)
    is_only_segment[documents.document_starts[:-1][np.diff(documents.document_starts) == 1]] = True
    parts = np.maximum(-(-lengths // longest), np.where(is_only_segment & (lengths > 1), 2, 1))
    to_cut = np.flatnonzero(parts > 1)
    cuts: list[int] = []
    added = np.zeros(len(lengths), np.int64)
    for segment in to_cut.tolist():
        start, length, count = int(starts[segment]), int(lengths[segment]), int(parts[segment])
        word_starts = start + np.flatnonzero(~is_continuation[documents.tokens[start : start + length]])
        before = start
        for part in range(1, count):
            ideal = start + length * part // count
            cut = int(word_starts[np.argmin(np.abs(word_starts - ideal))]) if len(word_starts) else ideal
            rest = start + length - cut
            fits = cut > before and cut - before <= longest and rest <= longest * (count - part)
            before = cut if fits else ideal
            cuts.append(before)
            added[segment] += 1
    grown = np.concatenate([[0], np.cumsum(added)])
    return TokenizedDocuments(
        tokens=documents.tokens,
        segment_starts=np.sort(np.concatenate([starts, np.array(cuts, np.int64)])),
        document_starts=documents.document_starts + grown[documents.document_starts],
    )


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
