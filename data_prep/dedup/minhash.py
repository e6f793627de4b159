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

from bert_pld.rng import Stream, random_words

SHINGLE_WORDS = 5
HASHES = 128
BAND_ROWS = 4
BANDS = HASHES // BAND_ROWS
"""Documents that agree in all rows of a band are compared: at similarity s a pair is met with 1 - (1 - s⁴)³²."""
FEWEST_WORDS = 150
"""A shorter document is like another only if its subject, the first names or numbers in it, is the same too: short
articles made from one template, with a name exchanged, have more in common than an edited copy and its original."""
SUBJECT_NAMES = 4

WINDOW_BYTES = 1 << 20
"""Words are hashed in windows of this size, which bounds memory; a shingle across two windows is left out."""
_BASE = 0x9E3779B97F4A7C15
_BASE_INVERSE = pow(_BASE, -1, 2**64)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_NOTHING = np.uint32(0xFFFFFFFF)
_NAME_BYTES = np.array([chr(byte).isupper() or chr(byte).isdigit() or byte >= 0x80 for byte in range(256)])
"""What a name or number begins with; a letter beyond ASCII may be a capital."""
_WORD_BYTES = np.array([chr(byte).isalnum() or byte >= 0x80 for byte in range(256)])

UInt64Array = NDArray[np.uint64]


def signatures(texts: Sequence[str]) -> NDArray[np.uint16]:
    """The signatures of documents.

    Args:
        texts: D documents.

    Returns:
        uint16 `[D, BANDS, BAND_ROWS]`. That of a document of fewer than `FEWEST_WORDS` words is encrypted with a digest
        of its subject; that of one of fewer than `SHINGLE_WORDS` words is 0.
    """
    lowest = np.full((len(texts), HASHES), _NOTHING, np.uint32)
    words = np.zeros(len(texts), np.int64)
    subjects = np.zeros(len(texts), np.uint64)
    window: list[bytes] = []
    first, size = 0, 0
    for number, text in enumerate(texts):
        data = text.encode("utf-8")
        if window and size + len(data) > WINDOW_BYTES:
            _take(window, lowest[first:number], words[first:number], subjects[first:number])
            window, first, size = [], number, 0
        window.append(data)
        size += len(data) + 1
        while len(window[-1]) > WINDOW_BYTES:  # alone in its window
            cut = window[-1].rfind(b" ", 0, WINDOW_BYTES) + 1 or WINDOW_BYTES
            here = slice(number, number + 1)
            _take([window[-1][:cut]], lowest[here], words[here], subjects[here])
            window[-1] = window[-1][cut:]
    if window:
        _take(window, lowest[first:], words[first:], subjects[first:])
    signed = (lowest & np.uint32(0xFFFF)).astype(np.uint16)
    subjects[words >= FEWEST_WORDS] = 0
    signed = signed.reshape(len(texts), BANDS, BAND_ROWS) ^ subjects.view(np.uint16).reshape(-1, 1, BAND_ROWS)
    signed[lowest[:, 0] == _NOTHING] = 0
    return signed


def _take(documents: list[bytes], lowest: NDArray[np.uint32], words: NDArray[np.int64], subjects: UInt64Array) -> None:
    """Lower the minima of D documents, `[D, HASHES]`, to those of their shingles; count words, digest subjects."""
    joined = b" ".join(documents) + b" "
    data = np.frombuffer(joined, np.uint8)
    starts, ends = _words(data)
    if not len(starts):
        return
    hashes = _mixed(_span_hashes(np.frombuffer(joined.lower(), np.uint8), starts, ends))
    document_ends = np.cumsum([len(document) + 1 for document in documents])
    words_until = np.searchsorted(starts, document_ends)
    words_from = np.concatenate([[0], words_until[:-1]])
    words += words_until - words_from
    subjects[:] = _subjects(hashes, np.flatnonzero(_NAME_BYTES[data[starts]]), words_from, words_until)
    shingles, starts_of, present = _shingles(hashes, words_from, words_until)
    if not len(shingles):
        return
    factors, offsets = _orders()
    ranked = np.empty_like(shingles)
    for order in range(HASHES):
        np.multiply(shingles, factors[order], out=ranked)
        ranked += offsets[order]
        lowest[present, order] = np.minimum(lowest[present, order], np.minimum.reduceat(ranked, starts_of))


def _words(data: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First byte of each word, and the byte after its last; `data` ends in a space."""
    in_word = _WORD_BYTES[data]
    edges = np.flatnonzero(in_word[1:] != in_word[:-1]) + 1
    if in_word[0]:
        edges = np.concatenate([[0], edges])
    return edges[0::2], edges[1::2]


def _subjects(
    words: UInt64Array, names: NDArray[np.int64], words_from: NDArray[np.int64], words_until: NDArray[np.int64]
) -> UInt64Array:
    """A digest of each document's first `SUBJECT_NAMES` words among `names`; of fewer where it has fewer."""
    digests = np.zeros(len(words_from), np.uint64)
    first = np.searchsorted(names, words_from)
    for place in range(SUBJECT_NAMES):
        at = np.append(names, len(words))[np.minimum(first + place, len(names))]
        found = at < words_until
        digests[found] = digests[found] * np.uint64(_BASE) + words[at[found]]
    return _mixed(digests)


def _shingles(
    words: UInt64Array, words_from: NDArray[np.int64], words_until: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """The hash of every shingle, where those of a document begin, and which documents have any."""
    counts = np.maximum(words_until - words_from - SHINGLE_WORDS + 1, 0)
    present = np.flatnonzero(counts)
    starts_of = np.cumsum(counts[present]) - counts[present]
    if not len(present):
        return np.empty(0, np.uint32), starts_of, present
    is_first = np.zeros(len(words) - SHINGLE_WORDS + 2, np.int8)  # +1 where a document's shingles begin, -1 after them
    np.add.at(is_first, words_from[present], 1)
    np.add.at(is_first, words_from[present] + counts[present], -1)
    within = np.cumsum(is_first[:-1]).astype(bool)
    total = words[: len(within)].copy()
    for place in range(1, SHINGLE_WORDS):
        total *= np.uint64(_BASE)
        total += words[place : place + len(within)]
    return (_mixed(total[within]) >> np.uint64(32)).astype(np.uint32), starts_of, present


def _span_hashes(values: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> UInt64Array:
    """The polynomial Σ v·Bⁱ (mod 2⁶⁴) of each span of bytes, i counted from its start, by one running sum over all."""
    powers, inverses = base_powers()
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(powers[: len(values)] * values, out=sums[1:])
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
def base_powers() -> tuple[UInt64Array, UInt64Array]:
    """The powers of the base and of its inverse modulo 2⁶⁴, as many as a window has bytes."""

    def table(base: int) -> UInt64Array:
        factors = np.full(WINDOW_BYTES + 2, base, np.uint64)
        factors[0] = 1
        return np.multiply.accumulate(factors)

    return table(_BASE), table(_BASE_INVERSE)


@functools.lru_cache(maxsize=1)
def _orders() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Factor (odd, so that h ↦ a·h + b is a permutation of 32 bits) and offset of each order."""
    factors, offsets, _, _ = random_words(0, Stream.MINHASH, np.arange(HASHES))
    return factors | np.uint32(1), offsets
