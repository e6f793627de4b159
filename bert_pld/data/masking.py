"""Masks for masked language modelling, drawn from (seed, epoch, row) and from nothing else.

The rule is BERT's: of a row's tokens that are neither special nor padding, 15 % are chosen; of the chosen, 80 % become
[MASK], 10 % a random entry of the vocabulary, 10 % stay. The target is always the original token. Every random word is
counter-based, so a row's masks depend neither on its neighbours in the micro-batch nor on the worker or rank that
draws them. Source: Devlin et al., "BERT", NAACL 2019, section 3.1 and appendix C.2.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bert_pld.counter_rng import Stream, UInt32Array, random_words, to_unit_interval
from bert_pld.data.shards import VOCABULARY_NAME, Manifest, vocabulary_hash
from bert_pld.data.wordpiece import CONTINUATION, read_entries

Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# Thresholds of a uint32: below the first [MASK], below the second a random entry, else unchanged.
_MASK_BELOW = round(0.8 * 2**32)
_RANDOM_BELOW = round(0.9 * 2**32)

_NO_KEY = np.uint64(2**64 - 1)
_POSITION_BITS = np.uint64(16)


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """What masking must know of a WordPiece vocabulary."""

    size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    is_continuation: BoolArray
    """`[size]`: the entry continues the word before it (`##…`)."""

    is_special: BoolArray = dataclasses.field(init=False, repr=False)
    """`[size]`: never masked, never drawn as a replacement."""
    replacement_ids: Int64Array = dataclasses.field(init=False, repr=False)
    """All entries that are not special, ascending."""

    def __post_init__(self) -> None:
        outside = [i for i in self.special_ids if not 0 <= i < self.size]
        if outside or len(set(self.special_ids)) != len(self.special_ids):
            raise ValueError(
                f"special tokens pad, unk, cls, sep, mask = {list(self.special_ids)}: must be five different ids"
                f" in [0, {self.size})"
            )
        if len(self.is_continuation) != self.size:
            raise ValueError(f"is_continuation has {len(self.is_continuation)} entries, the vocabulary {self.size}")
        is_special = np.zeros(self.size, np.bool_)
        is_special[list(self.special_ids)] = True
        if is_special.all():
            raise ValueError("vocabulary: holds nothing but special tokens")
        object.__setattr__(self, "is_special", is_special)
        object.__setattr__(self, "replacement_ids", np.flatnonzero(~is_special).astype(np.int64))

    @property
    def special_ids(self) -> tuple[int, int, int, int, int]:
        """The ids of pad, unk, cls, sep and mask."""
        return (self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)

    @classmethod
    def read(cls, data_dir: str | Path, manifest: Manifest, path: Path | None = None) -> Vocabulary:
        """Read a data directory's vocabulary, `vocab.txt` or the file at `path`, and check it against the manifest.

        Raises:
            ValueError: the file is missing, is not the vocabulary that made the shards, or a special token is unnamed.
        """
        path = path or Path(data_dir) / VOCABULARY_NAME
        entries = read_entries(path)
        expected = manifest.attributes
        if len(entries) != expected.vocabulary_size or vocabulary_hash(entries) != expected.vocabulary_hash:
            raise ValueError(
                f"{path}: {len(entries)} entries are not the vocabulary that made the shards"
                f" ({expected.vocabulary_size} entries, SHA-256 {expected.vocabulary_hash[:12]}…)"
            )
        names = ("pad", "unk", "cls", "sep", "mask")
        missing = [name for name in names if name not in manifest.special_tokens]
        if missing:
            raise ValueError(f"{data_dir}: the manifest's special_tokens lack {', '.join(missing)}")
        return cls(
            size=len(entries),
            is_continuation=np.array([entry.startswith(CONTINUATION) for entry in entries], np.bool_),
            **{f"{name}_id": manifest.special_tokens[name] for name in names},
        )


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedTokens:
    """A masked micro-batch of B rows of S tokens, with M targets."""

    input_ids: Int64Array
    """`[B, S]`, a copy."""
    positions: Int64Array
    """`[M]` flat indices into B · S, ascending."""
    labels: Int64Array
    """`[M]` original tokens at `positions`."""


def mask_tokens(
    input_ids: Int64Array,
    lengths: Int64Array,
    row_indices: Int64Array,
    epochs: Int64Array,
    *,
    vocabulary: Vocabulary,
    seed: int,
    mask_probability: float = 0.15,
    whole_word: bool = False,
) -> MaskedTokens:
    """Mask B rows.

    A row with c candidates has a budget of p·c tokens, rounded up with the probability of its fraction (so that no
    rounding bias remains) and at least 1. Single tokens meet it exactly. Whole words are taken in random order; the
    word that would overrun the budget is taken with the probability of the share of it that fits, so that the
    expected number of masked tokens is still the budget, and the first word always.

    Args:
        input_ids: `[B, S]` unmasked tokens, S at most 65,536.
        lengths: `[B]` tokens that are not padding.
        row_indices: `[B]` the rows' running indices in their split.
        epochs: `[B]` each row's epoch, in [0, 2^32); all 0 for static masks.
        vocabulary: of the shards.
        seed: in [0, 2^32).
        mask_probability: p in (0, 1).
        whole_word: mask a token together with the `##` pieces that follow it.
    """
    batch, seq_length = input_ids.shape
    positions = np.arange(seq_length)
    candidates = ~vocabulary.is_special[input_ids]
    candidates &= positions < lengths[:, None]
    selection, action, row_words = _random_words(seed, seq_length, row_indices, epochs)

    # A position's key: its random word, then the position, so that keys differ and their order is random.
    keys = (selection.astype(np.uint64) << _POSITION_BITS) | positions.astype(np.uint64)
    counts = candidates.sum(axis=1)
    budgets = np.floor(mask_probability * counts + to_unit_interval(row_words[:, 0])).astype(np.int64)
    budgets = np.maximum(budgets, 1)
    if whole_word:
        chosen = _choose_words(input_ids, candidates, keys, budgets, row_words[:, 1], vocabulary)
    else:
        token_keys = np.where(candidates, keys, _NO_KEY)
        chosen = candidates & _among_first(token_keys, np.sort(token_keys, axis=1), budgets)

    flat = np.flatnonzero(chosen)
    labels = input_ids.reshape(-1)[flat]
    masked = input_ids.reshape(-1).copy()
    masked[flat] = _replace(labels, action.reshape(-1)[flat], vocabulary)
    return MaskedTokens(masked.reshape(batch, seq_length), flat, labels)


def _random_words(
    seed: int, seq_length: int, row_indices: Int64Array, epochs: Int64Array
) -> tuple[UInt32Array, UInt32Array, UInt32Array]:
    """Two words a position, `[B, S]` each, and two words a row, `[B, 2]`.

    A counter's block of four serves two positions; the row's own block follows the positions'.
    """
    blocks = (seq_length + 1) // 2
    rows = row_indices[:, None]
    counter = (np.arange(blocks + 1), rows & 0xFFFFFFFF, rows >> 32, epochs[:, None])
    word_0, word_1, word_2, word_3 = random_words(seed, Stream.MASKING, *counter)
    selection = np.concatenate((word_0[:, :blocks], word_1[:, :blocks]), axis=1)[:, :seq_length]
    action = np.concatenate((word_2[:, :blocks], word_3[:, :blocks]), axis=1)[:, :seq_length]
    return selection, action, np.stack((word_0[:, blocks], word_1[:, blocks]), axis=1)


def _among_first(keys: NDArray[np.uint64], ascending: NDArray[np.uint64], counts: Int64Array) -> BoolArray:
    """Mark in each row b of `keys` its `counts[b]` smallest, at least 1; `ascending` holds the same keys sorted."""
    return keys <= np.take_along_axis(ascending, counts[:, None] - 1, axis=1)


def _choose_words(
    input_ids: Int64Array,
    candidates: BoolArray,
    keys: NDArray[np.uint64],
    budgets: Int64Array,
    row_words: UInt32Array,
    vocabulary: Vocabulary,
) -> BoolArray:
    """Mark whole words until each row's budget is met: bool `[B, S]`."""
    batch, seq_length = input_ids.shape
    starts = candidates.copy()
    starts[:, 1:] &= ~(vocabulary.is_continuation[input_ids[:, 1:]] & candidates[:, :-1])
    start_of = np.maximum.accumulate(np.where(starts, np.arange(seq_length), 0), axis=1)
    start_of += np.arange(batch)[:, None] * seq_length  # flat index of the word that each token belongs to
    word_lengths = np.bincount(start_of[candidates], minlength=batch * seq_length)

    word_keys = np.where(starts, keys, _NO_KEY)
    ascending = np.sort(word_keys, axis=1)
    order = (ascending & np.uint64(0xFFFF)).astype(np.int64)
    exists = ascending != _NO_KEY
    order[~exists] = 0
    lengths = word_lengths.reshape(batch, seq_length)[np.arange(batch)[:, None], order] * exists
    before = np.cumsum(lengths, axis=1) - lengths
    # Fits whole (share >= 1), or crosses the budget and fits by share > u.
    share_left = budgets[:, None] - before
    taken = exists & (share_left > to_unit_interval(row_words)[:, None] * lengths)
    taken[:, 0] = True
    chosen_starts = _among_first(word_keys, ascending, taken.sum(axis=1))
    return chosen_starts.reshape(-1)[start_of] & candidates


def _replace(labels: Int64Array, words: UInt32Array, vocabulary: Vocabulary) -> Int64Array:
    """What stands in the place of each chosen token: [MASK], a random entry or itself."""
    replaced = np.where(words < _MASK_BELOW, vocabulary.mask_id, labels)
    random = np.flatnonzero((words >= _MASK_BELOW) & (words < _RANDOM_BELOW))
    # Given that it fell into the interval, the word is uniform over it, and serves as the draw of the entry.
    draws = (words[random].astype(np.int64) - _MASK_BELOW) * len(vocabulary.replacement_ids)
    replaced[random] = vocabulary.replacement_ids[draws // (_RANDOM_BELOW - _MASK_BELOW)]
    return replaced
