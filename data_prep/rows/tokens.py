"""Documents as token ids: one flat array, and the positions where segments and documents start."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from bert_pld.data.tokenizer import LONGEST_WORD_CHARACTERS

_BATCH_SENTENCES = 4096
_BATCH_CHARACTERS = 1 << 17


@dataclasses.dataclass
class TokenizedDocuments:
    """T tokens in S segments (sentences, or parts of long ones) in D documents; no segment or document is empty."""

    tokens: NDArray[np.uint32]
    """[T]"""
    segment_starts: NDArray[np.int64]
    """[S + 1] positions in `tokens`."""
    document_starts: NDArray[np.int64]
    """[D + 1] positions in `segment_starts`."""
    long_unknown: int = 0
    """Number of unknown tokens that stand for more than 100 characters."""


def encode_documents(
    tokenizer: Tokenizer, documents: Iterable[list[str]], unknown: int | None = None
) -> TokenizedDocuments:
    """Tokenize sentence by sentence, without special tokens; sentences and documents without a token are left out.

    `unknown` is the id of [UNK], if there is one.
    """
    gathered = _Gathered()
    for batch in _batches(documents, _BATCH_SENTENCES, len):
        sentences = list(itertools.chain.from_iterable(batch))
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(sentences, add_special_tokens=False)]
        gathered.add(list(itertools.chain.from_iterable(ids)), list(map(len, ids)), list(map(len, batch)))
        for sentence, own in zip(sentences, ids, strict=True):
            if len(sentence) > LONGEST_WORD_CHARACTERS and unknown in own:
                gathered.long_unknown += _long_unknown(tokenizer.encode(sentence, add_special_tokens=False), unknown)
    return gathered.documents()


def encode_whole_documents(
    tokenizer: Tokenizer,
    documents: Iterable[list[str]],
    left_out: NDArray[np.bool_],
    unknown: int | None = None,
) -> TokenizedDocuments:
    """Tokenize whole documents, without special tokens, and cut them where sentences begin.

    A document is a list of sentences, which together are its text. A token belongs to the sentence in which it begins,
    and the space before a sentence belongs to that sentence. `left_out`, bool [vocabulary size], is true for ids that
    must not occur in a text: a tokenizer may make a special token where a text contains its name. `unknown` is the id
    of [UNK], if there is one.
    """
    gathered = _Gathered()
    for batch in _batches(documents, _BATCH_CHARACTERS, lambda sentences: sum(map(len, sentences))):
        encodings = tokenizer.encode_batch(["".join(sentences) for sentences in batch], add_special_tokens=False)
        for sentences, encoding in zip(batch, encodings, strict=True):
            ids = np.array(encoding.ids, np.uint32)
            starts = np.fromiter(itertools.chain.from_iterable(encoding.offsets), np.int64, count=2 * len(ids))[::2]
            if unknown is not None and (ids == unknown).any():
                gathered.long_unknown += _long_unknown(encoding, unknown)
            if (unwanted := left_out[ids]).any():
                ids, starts = ids[~unwanted], starts[~unwanted]
            ends = np.cumsum([len(sentence) for sentence in sentences])
            cuts = np.searchsorted(np.maximum.accumulate(starts), ends[:-1])
            gathered.add(ids, np.diff(cuts, prepend=0, append=len(ids)).tolist(), [len(sentences)])
    return gathered.documents()


def _long_unknown(encoding: Encoding, unknown: int | None) -> int:
    tokens = zip(encoding.ids, encoding.offsets, strict=True)
    return sum(token == unknown and end - start > LONGEST_WORD_CHARACTERS for token, (start, end) in tokens)


def _batches(
    documents: Iterable[list[str]], size: int, size_of: Callable[[list[str]], int]
) -> Iterator[list[list[str]]]:
    """Yield batches of documents whose sizes, by `size_of`, are at least `size` together; the last may be smaller."""
    batch: list[list[str]] = []
    total = 0
    for document in documents:
        batch.append(document)
        total += size_of(document)
        if total >= size:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


class _Gathered:
    """Ids, segment lengths and segments of each document, batch after batch."""

    def __init__(self) -> None:
        self._ids = [np.empty(0, np.uint32)]
        self._lengths: list[int] = []
        self._segments: list[int] = []
        self.long_unknown = 0

    def add(self, ids: Sequence[int] | NDArray[np.uint32], lengths: list[int], segments: list[int]) -> None:
        self._ids.append(np.asarray(ids, np.uint32))
        self._lengths += lengths
        self._segments += segments

    def documents(self) -> TokenizedDocuments:
        """Return all documents; segments and documents without a token are left out."""
        lengths = np.array(self._lengths, np.int64)
        document_of_segment = np.repeat(np.arange(len(self._segments)), self._segments)[lengths > 0]
        segments = np.bincount(document_of_segment, minlength=len(self._segments))
        return TokenizedDocuments(
            np.concatenate(self._ids),
            _starts(lengths[lengths > 0]),
            _starts(segments[segments > 0]),
            self.long_unknown,
        )


def split_long_segments(
    documents: TokenizedDocuments, longest: int, is_continuation: NDArray[np.bool_]
) -> TokenizedDocuments:
    """Cut segments of more than `longest` tokens into equal parts, and the only segment of a document into two.

    Afterwards every document of at least two tokens has two segments or more, as a sentence pair needs. A cut is placed
    at the nearest word start where the parts stay short enough. `is_continuation`, bool [vocabulary size], is true for
    entries that continue a word.
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
            first = max(before + 1, start + length - longest * (count - part))
            last = min(before + longest, start + length - (count - part))
            ideal = min(max(start + length * part // count, first), last)
            allowed = slice(*np.searchsorted(word_starts, [first, last + 1]))
            before = _nearest(word_starts[allowed], ideal)
            cuts.append(before)
            added[segment] += 1
    grown = np.concatenate([[0], np.cumsum(added)])
    return TokenizedDocuments(
        tokens=documents.tokens,
        segment_starts=np.sort(np.concatenate([starts, np.array(cuts, np.int64)])),
        document_starts=documents.document_starts + grown[documents.document_starts],
        long_unknown=documents.long_unknown,
    )


def _nearest(places: NDArray[np.int64], ideal: int) -> int:
    """Return the sorted place that is nearest to the ideal one, the first of two; without a place, the ideal one."""
    after = int(np.searchsorted(places, ideal))
    return int(min(places[max(after - 1, 0) : after + 1], key=lambda place: abs(place - ideal), default=ideal))


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
