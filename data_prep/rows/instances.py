"""Training rows from tokenized documents: sentence pairs for next sentence prediction, or packed sequences.

Pairs follow Devlin et al., "BERT", NAACL 2019, appendix A.2, with one difference. In the paper's code, a chunk of one
sentence always gets a random continuation; more than half of all pairs are then random, and the form of A reveals the
label. Here such a chunk is joined with its neighbour, so that half of the pairs are random in expectation for sentences
of any length.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bert_pld.data.fast_tokenizer import RowTemplate
from bert_pld.data.shards import IS_NEXT, NO_PAIR, RANDOM_NEXT, SPLITS, Rows
from bert_pld.rng import Stream, random_words, to_unit_interval
from data_prep.rows.tokens import TokenizedDocuments, split_long_segments

RANDOM_NEXT_PROBABILITY = 0.5
SHORT_SEQUENCE_PROBABILITY = 0.1
SMALLEST_SEQ_LENGTH = 8
_BLOCK = 4096


def pair_rows(
    documents: TokenizedDocuments,
    seq_length: int,
    template: RowTemplate,
    is_continuation: NDArray[np.bool_],
    seed: int,
    split: str,
    group: int,
) -> Rows:
    """Return rows `[CLS] A [SEP] B [SEP]` of at most `seq_length` tokens (at least 8), as the columns of a shard.

    `template` may have more than one token between A and B.

    Consecutive segments of a document form a chunk of the target length: the full length, or for one chunk in ten a
    shorter one, drawn uniformly from 2 to the full length. The chunk is cut between two segments into A and B. In half
    of the pairs, B is instead taken from another document of the same group, and the displaced segments begin the next
    chunk. A pair that is too long is trimmed at both ends of the longer of A and B. In a group of a single document,
    the random B is taken from elsewhere in that document. The random numbers depend on `seed`, `split` and `group`.
    `is_continuation`, bool [vocabulary size], is true for entries that continue a word.
    """
    around = 2 + len(template.between)
    room = seq_length - around
    documents = split_long_segments(documents, room // 2, is_continuation)
    spans = np.array(list(_pairs(documents, room, _draws(seed, split, group))), np.int64).reshape(-1, 5)
    a_start, a_end, b_start, b_end, label = spans.T
    a_length, b_length = a_end - a_start, b_end - b_start
    length = a_length + b_length + around
    b_begin = a_length + 1 + len(template.between)
    input_ids = np.empty((len(spans), seq_length), np.uint32)
    column = np.arange(seq_length)
    for first in range(0, len(spans), _BLOCK):
        block = slice(first, first + _BLOCK)
        a_stop, stop = a_length[block, None] + 1, length[block, None] - 1
        first_b = b_begin[block, None]
        position = np.where(
            column >= first_b, b_start[block, None] + column - first_b, a_start[block, None] + column - 1
        )
        ids = documents.tokens[np.clip(position, 0, len(documents.tokens) - 1)]
        ids[column > stop] = template.pad_id
        for place, between in enumerate(template.between):
            ids[column == a_stop + place] = between
        ids[column == stop] = template.sep_id
        ids[:, 0] = template.cls_id
        input_ids[block] = ids
    return {"input_ids": input_ids, "length": length, "segment_b_start": b_begin, "next_sentence_label": label}


def packed_rows(documents: TokenizedDocuments, seq_length: int, template: RowTemplate) -> Rows:
    """Return rows `[CLS] … [SEP]` filled to `seq_length`: the documents in order, with a [SEP] between them.

    Every token is in exactly one row; only the last row is padded.
    """
    width = seq_length - 2
    inner_ends = documents.segment_starts[documents.document_starts[1:-1]]
    stream = np.insert(documents.tokens, inner_ends, template.sep_id)
    count = -(-len(stream) // width)
    input_ids = np.full((count, seq_length), template.pad_id, np.uint32)
    input_ids[:, 0] = template.cls_id
    body = np.full(count * width, template.pad_id, np.uint32)
    body[: len(stream)] = stream
    input_ids[:, 1:-1] = body.reshape(count, width)
    length = np.full(count, seq_length, np.int64)
    if count:  # a tokenizer without [UNK] may give a whole group no token
        length[-1] = len(stream) - (count - 1) * width + 2
    input_ids[np.arange(count), length - 1] = template.sep_id
    return {
        "input_ids": input_ids,
        "length": length,
        "segment_b_start": length.copy(),
        "next_sentence_label": np.full(count, NO_PAIR, np.int8),
    }


def _draws(seed: int, split: str, group: int) -> Iterator[list[float]]:
    """Yield eight numbers in [0, 1) for each pair in turn, a function of (seed, split, group, pair)."""
    first = 0
    while True:
        pairs = np.arange(first, first + _BLOCK)
        words = [
            word
            for half in (0, 1)
            for word in random_words(seed, Stream.INSTANCES, pairs, group, SPLITS.index(split), half)
        ]
        yield from to_unit_interval(np.stack(words, axis=1)).tolist()
        first += _BLOCK


def _pairs(
    documents: TokenizedDocuments, room: int, draws: Iterator[list[float]]
) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield A and B of each pair as spans of the token array, and the label."""
    starts: list[int] = documents.segment_starts.tolist()
    bounds: list[int] = documents.document_starts.tolist()
    for document, (first, last) in enumerate(itertools.pairwise(bounds)):
        here = first
        while here < last:
            short, short_length, cut, label, other, other_start, trim_a, trim_b = next(draws)
            is_random = label < RANDOM_NEXT_PROBABILITY
            target = room if short >= SHORT_SEQUENCE_PROBABILITY else 2 + int(short_length * (room - 1))
            end = bisect_left(starts, starts[here] + target, here + 1, last)
            end = min(max(end, here + 2), last)
            if end - here == 1:
                # The document's last segment alone: it becomes B after its neighbour, or A before a random segment.
                begin, middle, following = (here, last, last) if is_random or here == first else (here - 1, here, last)
            else:
                begin, middle = here, here + 1 + int(cut * (end - here - 1))
                following = middle if is_random else end
            chosen = None
            if is_random or middle == end:
                chosen = _random_segment(bounds, document, begin, middle, other, other_start)
            if chosen is None and middle == end:
                return  # the only document has a single token, which cannot form a pair
            if chosen is None:
                b_first, b_last, following, value = middle, end, end, IS_NEXT
            else:
                stop = bounds[bisect_left(bounds, chosen + 1)]
                wanted = starts[chosen] + target - (starts[middle] - starts[begin])
                b_first, value = chosen, RANDOM_NEXT
                b_last = min(bisect_left(starts, wanted, chosen + 1, stop), stop)
            yield (*_trim(starts[begin], starts[middle], starts[b_first], starts[b_last], room, trim_a, trim_b), value)
            here = following


def _random_segment(
    bounds: list[int], document: int, begin: int, middle: int, other: float, other_start: float
) -> int | None:
    """Return a random segment of another document; of a single document, one neither in A nor right after A."""
    count = len(bounds) - 1
    if count > 1:
        chosen = int(other * (count - 1))
        chosen += chosen >= document
        return bounds[chosen] + int(other_start * (bounds[chosen + 1] - bounds[chosen]))
    elsewhere = bounds[-1] - (min(middle + 1, bounds[-1]) - begin)
    if not elsewhere:
        return None
    chosen = int(other_start * elsewhere)
    return chosen if chosen < begin else chosen + min(middle + 1, bounds[-1]) - begin


def _trim(
    a_start: int, a_end: int, b_start: int, b_end: int, room: int, trim_a: float, trim_b: float
) -> tuple[int, int, int, int]:
    """Trim the longer of A and B until both fit; the share that is removed at the front is random."""
    a, b = a_end - a_start, b_end - b_start
    if a + b > room:
        half_a, half_b = room - room // 2, room // 2
        kept_a = min(a, max(half_a, room - b))
        kept_b = min(b, max(half_b, room - a))
        front_a, front_b = int(trim_a * (a - kept_a + 1)), int(trim_b * (b - kept_b + 1))
        a_start, b_start = a_start + front_a, b_start + front_b
        a_end, b_end = a_start + kept_a, b_start + kept_b
    return a_start, a_end, b_start, b_end
