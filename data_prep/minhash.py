"""MinHash signatures: how much two documents have in common, from 256 bytes each.

A document is taken as the set of its shingles, runs of `SHINGLE_WORDS` consecutive words without regard to case and
punctuation. Under a random order of all shingles, two documents have the same first one with a probability equal to
the Jaccard similarity |A ∩ B| / |A ∪ B| of their sets (Broder, "On the resemblance and containment of documents",
1997); a signature keeps the first one under each of `HASHES` orders, 16 bits of it (Li and König, "b-bit minwise
hashing", WWW 2010). The share of equal entries estimates the similarity with a standard error of at most 0.044.

Everything is array arithmetic over the bytes of many documents at once; nothing loops over words.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bert_pld.counter_rng import Stream, random_words

SHINGLE_WORDS = 5
HASHES = 128
BAND_ROWS = 4
BANDS = HASHES // BAND_ROWS
"""Documents that agree in all rows of a band are compared: at similarity s a pair is met with 1 - (1 - s⁴)³²."""
FEWEST_WORDS = 60
"""Shorter documents are alike only if their whole signatures are equal. Below this length it is articles made from
one template, with nothing but a name exchanged, that are most similar: of encyclopaedia articles of 30 to 40 words
more than half would go at a similarity of 0.65, of those of 60 to 70 words one in 150."""

_WINDOW_BYTES = 1 << 20
"""Words are hashed in windows of this size, which bounds memory; a shingle across two windows is left out."""
_BASE = 0x9E3779B97F4A7C15
_BASE_INVERSE = pow(_BASE, -1, 2**64)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_WORD_BYTES = np.array([chr(byte).isalnum() or byte >= 0x80 for byte in range(256)])

UInt64Array = NDArray[np.uint64]


def signatures(texts: Sequence[str]) -> NDArray[np.uint16]:
    """The signatures of documents.

    Args:
        texts: D documents.

    Returns:
        uint16 `[D, BANDS, BAND_ROWS]`. A document of fewer than `FEWEST_WORDS` words has a digest of its signature in
        the first band and 0 in all others; one of fewer than `SHINGLE_WORDS` words has 0 everywhere.
    """
    lowest = np.full((len(texts), HASHES), 0xFFFFFFFF, np.uint32)
    words = np.zeros(len(texts), np.int64)
    window: list[bytes] = []
    first, size = 0, 0
    for number, text in enumerate(texts):
        data = text.lower().encode("utf-8")
        if window and size + len(data) > _WINDOW_BYTES:
            words[first:number] += _lower(lowest[first:number], window)
            window, first, size = [], number, 0
        window.append(data)
        size += len(data) + 1
        while len(window[-1]) > _WINDOW_BYTES:  # alone in its window
            cut = window[-1].rfind(b" ", 0, _WINDOW_BYTES) + 1 or _WINDOW_BYTES
            words[number : number + 1] += _lower(lowest[number : number + 1], [window[-1][:cut]])
            window[-1] = window[-1][cut:]
    if window:
        words[first:] += _lower(lowest[first:], window)
    signed = (lowest & np.uint32(0xFFFF)).astype(np.uint16)
    short = np.flatnonzero(words < FEWEST_WORDS)
    digests = _mixed(_folded(lowest[short]))
    digests[words[short] < SHINGLE_WORDS] = 0
    signed[short] = 0
    signed[short, :BAND_ROWS] = digests.view(np.uint16).reshape(-1, BAND_ROWS)
    return signed.reshape(len(texts), BANDS, BAND_ROWS)


def _folded(lowest: NDArray[np.uint32]) -> UInt64Array:
    """One number for each row."""
    powers, _ = _powers()
    return np.sum(lowest * powers[1 : HASHES + 1], axis=1, dtype=np.uint64)


def _lower(lowest: NDArray[np.uint32], documents: list[bytes]) -> NDArray[np.int64]:
    """Lower the minima of D documents, `[D, HASHES]`, to those of their shingles; the number of words of each."""
    hashes, document_of, words = _shingles(documents)
    if not len(hashes):
        return words
    starts = np.flatnonzero(np.concatenate([[True], document_of[1:] != document_of[:-1]]))
    present = document_of[starts]
    factors, offsets = _orders()
    ranked = np.empty_like(hashes)
    for order in range(HASHES):
        np.multiply(hashes, factors[order], out=ranked)
        ranked += offsets[order]
        lowest[present, order] = np.minimum(lowest[present, order], np.minimum.reduceat(ranked, starts))
    return words


def _shingles(documents: list[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """A hash of every shingle, the document it is in, ascending, and the number of words of each document."""
    data = np.frombuffer(b" ".join(documents) + b" ", np.uint8)
    in_word = _WORD_BYTES[data]
    edges = np.flatnonzero(in_word[1:] != in_word[:-1]) + 1
    if in_word[0]:
        edges = np.concatenate([[0], edges])
    starts, ends = edges[0::2], edges[1::2]
    words = _mixed(_span_hashes(data, starts, ends))
    document_ends = np.cumsum([len(document) + 1 for document in documents])
    document_of = np.searchsorted(document_ends, starts, side="right")
    words_of = np.bincount(document_of, minlength=len(documents))
    count = len(words) - SHINGLE_WORDS + 1
    if count < 1:
        return np.empty(0, np.uint32), np.empty(0, np.int64), words_of
    total = words[:count].copy()
    for place in range(1, SHINGLE_WORDS):
        total *= np.uint64(_BASE)
        total += words[place : place + count]
    within = document_of[:count] == document_of[SHINGLE_WORDS - 1 :]
    return (_mixed(total[within]) >> np.uint64(32)).astype(np.uint32), document_of[:count][within], words_of


def _span_hashes(data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> UInt64Array:
    """The polynomial Σ c·Bⁱ (mod 2⁶⁴) of each span of bytes, i counted from its start, by one running sum over all."""
    powers, inverses = _powers()
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(powers[: len(data)] * data, out=sums[1:])
    hashed: UInt64Array = (sums[ends] - sums[starts]) * inverses[starts]
    return hashed


def _mixed(values: UInt64Array) -> UInt64Array:
    """Every bit of the result depends on every bit of the value."""
    mixed = values ^ (values >> np.uint64(32))
    mixed *= _MIX
    mixed ^= mixed >> np.uint64(32)
    mixed *= _MIX
    mixed ^= mixed >> np.uint64(32)
    return mixed


@functools.lru_cache(maxsize=1)
def _powers() -> tuple[UInt64Array, UInt64Array]:
    """The powers of the base and of its inverse modulo 2⁶⁴, as many as a window has bytes."""

    def table(base: int) -> UInt64Array:
        factors = np.full(_WINDOW_BYTES + 2, base, np.uint64)
        factors[0] = 1
        return np.multiply.accumulate(factors)

    return table(_BASE), table(_BASE_INVERSE)


@functools.lru_cache(maxsize=1)
def _orders() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Factor (odd, so that h ↦ a·h + b is a permutation of 32 bits) and offset of each order."""
    factors, offsets, _, _ = random_words(0, Stream.MINHASH, np.arange(HASHES))
    return factors | np.uint32(1), offsets
