"""Training of a Unigram vocabulary whose result is the same in every run.

The trainer of the library `tokenizers` adds probabilities in the order of a hash table; its scores, and near a limit
its pieces, differ from run to run. Here all counts are integers. The pieces of a byte pair encoding are the seeds.
Expectation maximisation follows: the library finds each word's best segmentation, the counts of the pieces become their
scores, and the pieces that the text would miss least are removed, a quarter at a time. Source: Kudo, "Subword
Regularization", ACL 2018, section 3.2, with the best segmentation in place of the expectation over all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, trainers

LONGEST_PIECE = 16
_SEEDS_PER_PIECE = 2
_KEPT = 0.75
_LAST_ITERATIONS = 2
_SCORE_DIGITS = 6
"""A logarithm's last digits may differ between machines."""
_UNKNOWN = "\0"


def train_pieces(words: Mapping[str, int], characters: set[str], size: int) -> list[tuple[str, float]]:
    """Return at most `size` pieces with their scores, best first: the characters, and longer pieces made of them.

    `words` has the number of times that each word occurs.
    """
    texts = sorted(words)
    weights = np.array([words[text] for text in texts], np.int64)
    model, pieces = _seeds(texts, weights, characters, _SEEDS_PER_PIECE * size)
    scores = _scores(pieces, _count(model, pieces, texts, weights))
    iterations_at_size = 0
    while iterations_at_size < _LAST_ITERATIONS:
        pieces = list(scores)
        counts = _count(_unigram(scores), pieces, texts, weights)
        scores = _scores(pieces, counts)
        if len(pieces) > size:
            losses = {
                piece: math.inf if piece in characters else int(count) * _gain(piece, scores)
                for piece, count in zip(pieces, counts, strict=True)
            }
            wanted = max(size, int(_KEPT * len(pieces)))
            kept = sorted(losses, key=lambda piece: (-losses[piece], piece))[:wanted]
            scores = {piece: scores[piece] for piece in kept}
        iterations_at_size += len(pieces) <= size
    return sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))


def _seeds(
    texts: Sequence[str], weights: NDArray[np.int64], characters: set[str], size: int
) -> tuple[models.Model, list[str]]:
    """Return a byte pair encoding of the words, and its pieces; all characters are among them."""
    alphabet = sorted(characters)
    tokenizer = Tokenizer(models.BPE())
    # With the sorted alphabet as special tokens, which are numbered first, nothing depends on a hash table.
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, show_progress=False, special_tokens=alphabet, limit_alphabet=0,
        max_token_length=LONGEST_PIECE,
    )  # fmt: skip
    tokenizer.train_from_iterator(_repeated(texts, weights), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    merges = [(first, second) for first, second in trained["merges"]]
    return models.BPE(trained["vocab"], merges), sorted(trained["vocab"], key=trained["vocab"].__getitem__)


def _repeated(texts: Sequence[str], weights: NDArray[np.int64]) -> Iterable[str]:
    for text, weight in zip(texts, weights.tolist(), strict=True):
        for _ in range(weight):
            yield text


def _unigram(scores: Mapping[str, float]) -> models.Model:
    return models.Unigram([*scores.items(), (_UNKNOWN, min(scores.values()))], unk_id=len(scores), byte_fallback=False)


def _count(
    model: models.Model, pieces: Sequence[str], texts: Sequence[str], weights: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return how often each piece is in the segmentations of the words; the model numbers the pieces in their order."""
    tokenizer = Tokenizer(model)
    counts = np.zeros(len(pieces) + 1, np.int64)
    for first in range(0, len(texts), 1 << 12):
        batch = slice(first, first + (1 << 12))
        for encoding, weight in zip(tokenizer.encode_batch_fast(texts[batch]), weights[batch].tolist(), strict=True):
            np.add.at(counts, encoding.ids, weight)
    return counts[:-1]


def _scores(pieces: Sequence[str], counts: NDArray[np.int64]) -> dict[str, float]:
    """Return the logarithm of each piece's share; a piece without occurrence counts as half a one."""
    total = math.log(max(int(counts.sum()), 1))
    return {
        piece: round(math.log(max(int(count), 0.5)) - total, _SCORE_DIGITS)
        for piece, count in zip(pieces, counts, strict=True)
    }


def _gain(piece: str, scores: Mapping[str, float]) -> float:
    """Return by how much the piece's score is above that of its best segmentation into other pieces."""
    best = [0.0, *[-math.inf] * len(piece)]
    for end in range(1, len(piece) + 1):
        for start in range(end):
            if end - start < len(piece) and (score := scores.get(piece[start:end])) is not None:
                best[end] = max(best[end], best[start] + score)
    return scores[piece] - best[-1]
