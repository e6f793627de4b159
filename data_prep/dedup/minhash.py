"""MinHash signatures: 256 bytes per document, from which the similarity of two documents can be estimated.

A document is the set of its shingles: runs of `SHINGLE_WORDS` consecutive words, ignoring case and punctuation. In a
script without blanks, such as Chinese or Thai, each character with its marks is a word. Under a random order of all
shingles, the first shingles of two documents are equal with a probability equal to the Jaccard similarity
|A ∩ B| / |A ∪ B| of their sets (Broder, "On the resemblance and containment of documents", 1997). A signature holds 16
bits of the first shingle under each of `HASHES` orders (Li and König, "b-bit minwise hashing", WWW 2010). The share of
equal entries estimates the similarity with a standard error of at most 0.044.

All work is array arithmetic over the bytes of many documents at once; no Python loop runs over words.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bert_pld.rng import Stream, random_words
from data_prep.text.scripts import units_without_blanks

SHINGLE_WORDS = 5
HASHES = 128
BAND_ROWS = 4
BANDS = HASHES // BAND_ROWS
"""Documents that agree in all rows of a band are compared: with probability 1 - (1 - s⁴)³² at similarity s."""
FEWEST_WORDS = 150
"""Two shorter documents are similar only if they also begin with the same names and numbers (their subject). Otherwise
short articles made from one template, with the name exchanged, would be more similar than a document and its edited
copy."""
SUBJECT_NAMES = 4
CHARACTERS_FOR_A_WORD = 2
"""In a script without blanks, both limits are as many times higher, because they count characters."""

WINDOW_BYTES = 1 << 20
"""Words are hashed in windows of this size to limit memory; a shingle across two windows is left out."""
_BASE = 0x9E3779B97F4A7C15
_BASE_INVERSE = pow(_BASE, -1, 2**64)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_NO_SHINGLE = np.uint32(0xFFFFFFFF)
_NAME_BYTES = np.array([chr(byte).isupper() or chr(byte).isdigit() or byte >= 0x80 for byte in range(256)])
"""First bytes of names and numbers; a letter outside ASCII may be a capital."""
_WORD_BYTES = np.array([chr(byte).isalnum() or byte >= 0x80 for byte in range(256)])

UInt64Array = NDArray[np.uint64]


def signatures(texts: Sequence[str]) -> NDArray[np.uint16]:
    """Return the signatures of D documents: uint16 `[D, BANDS, BAND_ROWS]`.

    The signature of a document with fewer than `FEWEST_WORDS` words is combined by XOR with a digest of its subject.
    A document with fewer than `SHINGLE_WORDS` words has the signature 0.
    """
    units = [units_without_blanks(text) for text in texts]
    texts = [text if parts is None else " ".join(parts) for text, parts in zip(texts, units, strict=True)]
    texts = list(map(_without_punctuation, texts))
    scale = np.array([1 if parts is None else CHARACTERS_FOR_A_WORD for parts in units], np.int64)
    del units
    lowest = np.full((len(texts), HASHES), _NO_SHINGLE, np.uint32)
    words = np.zeros(len(texts), np.int64)
    subjects = np.zeros(len(texts), np.uint64)
    window: list[bytes] = []
    first, size = 0, 0
    for number, text in enumerate(texts):
        data = text.encode("utf-8")
        if window and size + len(data) > WINDOW_BYTES:
            here = slice(first, number)
            _add_window(window, lowest[here], words[here], subjects[here], scale[here])
            window, first, size = [], number, 0
        window.append(data)
        size += len(data) + 1
        while len(window[-1]) > WINDOW_BYTES:  # a long document is alone in its windows
            cut = window[-1].rfind(b" ", 0, WINDOW_BYTES) + 1 or WINDOW_BYTES
            here = slice(number, number + 1)
            _add_window([window[-1][:cut]], lowest[here], words[here], subjects[here], scale[here])
            window[-1] = window[-1][cut:]
    if window:
        _add_window(window, lowest[first:], words[first:], subjects[first:], scale[first:])
    signed = (lowest & np.uint32(0xFFFF)).astype(np.uint16)
    subjects[words >= FEWEST_WORDS * scale] = 0
    signed = signed.reshape(len(texts), BANDS, BAND_ROWS) ^ subjects.view(np.uint16).reshape(-1, 1, BAND_ROWS)
    signed[lowest[:, 0] == _NO_SHINGLE] = 0
    return signed


def _add_window(
    documents: list[bytes],
    lowest: NDArray[np.uint32],
    words: NDArray[np.int64],
    subjects: UInt64Array,
    scale: NDArray[np.int64],
) -> None:
    """Update the minima of D documents, `[D, HASHES]`, with their shingles; count words, set digests of subjects."""
    joined = b" ".join(documents) + b" "
    data = np.frombuffer(joined, np.uint8)
    starts, ends = _words(data)
    if not len(starts):
        return
    hashes = _mixed(_span_hashes(np.frombuffer(_in_small_letters(joined), np.uint8), starts, ends))
    document_ends = np.cumsum([len(document) + 1 for document in documents])
    words_until = np.searchsorted(starts, document_ends)
    words_from = np.concatenate([[0], words_until[:-1]])
    words += words_until - words_from
    names = np.flatnonzero(_NAME_BYTES[data[starts]])
    subjects[:] = _subjects(hashes, names, words_from, words_until, SUBJECT_NAMES * scale)
    shingles, starts_of, present = _shingles(hashes, words_from, words_until)
    if not len(shingles):
        return
    factors, offsets = _orders()
    ranked = np.empty_like(shingles)
    for order in range(HASHES):
        np.multiply(shingles, factors[order], out=ranked)
        ranked += offsets[order]
        lowest[present, order] = np.minimum(lowest[present, order], np.minimum.reduceat(ranked, starts_of))


def _without_punctuation(text: str) -> str:
    """Return a text with spaces for the punctuation marks, symbols and spaces outside ASCII."""
    if not text.isascii():
        for character in set(text):
            if character >= "\x80" and unicodedata.category(character)[0] in "PSZ":
                text = text.replace(character, " ")
    return text


@functools.cache
def _uneven() -> re.Pattern[str]:
    """Return a pattern of the few capitals whose small letter has more or fewer bytes, such as the dotted I."""
    capitals = filter(str.isupper, map(chr, range(0x80, 0x10000)))
    uneven = "".join(one for one in capitals if len(one.lower().encode()) != len(one.encode()))
    return re.compile(f"([{uneven}])")


def _in_small_letters(data: bytes) -> bytes:
    """Return a text in small letters, each character in as many bytes as before; uneven ones stay."""
    if data.isascii():
        return data.lower()
    # A document without spaces may be cut within a character.
    parts = _uneven().split(data.decode("utf-8", "surrogateescape"))
    parts[::2] = [part.lower() for part in parts[::2]]
    return "".join(parts).encode("utf-8", "surrogateescape")


def _words(data: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first byte of each word and the byte after its last; `data` must end in a space."""
    in_word = _WORD_BYTES[data]
    edges = np.flatnonzero(in_word[1:] != in_word[:-1]) + 1
    if in_word[0]:
        edges = np.concatenate([[0], edges])
    return edges[0::2], edges[1::2]


def _subjects(
    words: UInt64Array,
    names: NDArray[np.int64],
    words_from: NDArray[np.int64],
    words_until: NDArray[np.int64],
    most: NDArray[np.int64],
) -> UInt64Array:
    """Return a digest of the first `most` words among `names` of each document."""
    digests = np.zeros(len(words_from), np.uint64)
    first = np.searchsorted(names, words_from)
    for place in range(int(most.max())):
        at = np.append(names, len(words))[np.minimum(first + place, len(names))]
        found = (at < words_until) & (place < most)
        digests[found] = digests[found] * np.uint64(_BASE) + words[at[found]]
    return _mixed(digests)


def _shingles(
    words: UInt64Array, words_from: NDArray[np.int64], words_until: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """Return the hash of every shingle, where the shingles of a document begin, and which documents have any."""
    counts = np.maximum(words_until - words_from - SHINGLE_WORDS + 1, 0)
    present = np.flatnonzero(counts)
    starts_of = np.cumsum(counts[present]) - counts[present]
    if not len(present):
        return np.empty(0, np.uint32), starts_of, present
    # +1 at the first shingle of a document, -1 after its last
    is_first = np.zeros(len(words) - SHINGLE_WORDS + 2, np.int8)
    np.add.at(is_first, words_from[present], 1)
    np.add.at(is_first, words_from[present] + counts[present], -1)
    within = np.cumsum(is_first[:-1]).astype(bool)
    total = words[: len(within)].copy()
    for place in range(1, SHINGLE_WORDS):
        total *= np.uint64(_BASE)
        total += words[place : place + len(within)]
    return (_mixed(total[within]) >> np.uint64(32)).astype(np.uint32), starts_of, present


def _span_hashes(values: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> UInt64Array:
    """Return Σ v·Bⁱ (mod 2⁶⁴) of each span of bytes, i counted from its start, with one cumulative sum over all."""
    powers, inverses = base_powers()
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(powers[: len(values)] * values, out=sums[1:])
    hashed: UInt64Array = (sums[ends] - sums[starts]) * inverses[starts]
    return hashed


def _mixed(values: UInt64Array) -> UInt64Array:
    """Mix the bits of values, so that every bit of a result depends on every bit of its value."""
    mixed = values ^ (values >> np.uint64(32))
    mixed *= _MIX
    mixed ^= mixed >> np.uint64(32)
    mixed *= _MIX
    mixed ^= mixed >> np.uint64(32)
    return mixed


@functools.lru_cache(maxsize=1)
def base_powers() -> tuple[UInt64Array, UInt64Array]:
    """Return the powers of the base and of its inverse modulo 2⁶⁴, one for each byte of a window."""

    def table(base: int) -> UInt64Array:
        factors = np.full(WINDOW_BYTES + 2, base, np.uint64)
        factors[0] = 1
        return np.multiply.accumulate(factors)

    return table(_BASE), table(_BASE_INVERSE)


@functools.lru_cache(maxsize=1)
def _orders() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return factor and offset of each order; odd factors make h ↦ a·h + b a permutation of 32-bit numbers."""
    factors, offsets, _, _ = random_words(0, Stream.MINHASH, np.arange(HASHES))
    return factors | np.uint32(1), offsets
