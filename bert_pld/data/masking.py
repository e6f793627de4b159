"""Masks for masked language modelling, a function of (seed, epoch, row) alone.

The rule is BERT's: of a row's tokens that are neither special nor padding, 15 % are chosen; of the chosen, 80 % become
[MASK], 10 % a random entry of the vocabulary, and 10 % stay. The target is always the original token. All random
numbers are counter-based, so a row's masks depend neither on the other rows of the micro-batch nor on the worker or
rank that draws them. Source: Devlin et al., "BERT", NAACL 2019, section 3.1 and appendix C.2.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bert_pld.data.fast_tokenizer import FastTokenizer
from bert_pld.data.shards import Manifest, vocabulary_hash
from bert_pld.data.tokenizer import CONTINUATION, SPECIAL_TOKENS, read_entries
from bert_pld.files import VOCABULARY
from bert_pld.rng import Stream, UInt32Array, random_words, to_unit_interval

Int64Array = NDArray[np.int64]
Unit = Literal["token", "word", "span"]
BoolArray = NDArray[np.bool_]
Float64Array = NDArray[np.float64]

# Thresholds for a uint32: below the first, [MASK]; else below the second, a random entry; else unchanged.
_MASK_BELOW = round(0.8 * 2**32)
_RANDOM_BELOW = round(0.9 * 2**32)

_SPAN_BEGINS_BELOW = round(0.2 * 2**16)
_LONGEST_SPAN_WORDS = 10

_NO_WORD = np.uint32(2**32 - 1)
_NO_KEY = np.uint64(2**64 - 1)
_POSITION_BITS = np.uint64(16)
_POSITION_MASK = np.uint64(2**16 - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class MaskingVocabulary:
    """The properties of a tokenizer that masks and micro-batches use."""

    size: int
    pad_id: int
    unk_id: int | None
    cls_id: int
    sep_id: int
    mask_id: int
    is_continuation: BoolArray
    """`[size]`: whether the entry continues a word (`bert_pld.data.word_starts`)."""
    other_special_ids: tuple[int, ...] = ()
    """Further ids that are never masked and never a replacement."""
    segment_b_type: int = 1
    """Token type of segment B."""

    is_ordinary: BoolArray = dataclasses.field(init=False, repr=False)
    """`[size]`: whether the entry is not special, so that it may be masked or drawn as a replacement."""
    replacement_ids: Int64Array = dataclasses.field(init=False, repr=False)
    """Ids of all ordinary entries, ascending."""

    def __post_init__(self) -> None:
        outside = [i for i in self.special_ids if not 0 <= i < self.size]
        if outside or len(set(self.special_ids)) != len(self.special_ids):
            raise ValueError(
                f"special tokens pad, unk, cls, sep, mask = {list(self.special_ids)}: must be different ids"
                f" in [0, {self.size})"
            )
        if len(self.is_continuation) != self.size:
            raise ValueError(f"is_continuation has {len(self.is_continuation)} entries, the vocabulary {self.size}")
        is_ordinary = np.ones(self.size, np.bool_)
        is_ordinary[[*self.special_ids, *self.other_special_ids]] = False
        if not is_ordinary.any():
            raise ValueError("vocabulary: has only special tokens")
        object.__setattr__(self, "is_ordinary", is_ordinary)
        object.__setattr__(self, "replacement_ids", np.flatnonzero(is_ordinary).astype(np.int64))

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of pad, unk (where there is one), cls, sep and mask."""
        unknown = () if self.unk_id is None else (self.unk_id,)
        return (self.pad_id, *unknown, self.cls_id, self.sep_id, self.mask_id)

    @classmethod
    def of(cls, tokenizer: FastTokenizer) -> MaskingVocabulary:
        """Return what masks use of a tokenizer."""
        ids = tokenizer.special_ids()
        return cls(
            size=len(tokenizer.entries),
            pad_id=ids["pad"],
            unk_id=ids.get("unk"),
            cls_id=ids["cls"],
            sep_id=ids["sep"],
            mask_id=ids["mask"],
            is_continuation=tokenizer.is_continuation,
            other_special_ids=tokenizer.other_special_ids,
            segment_b_type=tokenizer.template.segment_b_type,
        )

    @classmethod
    def read(cls, data_dir: str | Path, manifest: Manifest, path: Path | None = None) -> MaskingVocabulary:
        """Read a data directory's tokenizer, and check it against the manifest; `path` names another `vocab.txt`.

        A file that is missing or is not the shards' tokenizer, or a manifest without a special token, is a ValueError.
        """
        if manifest.attributes.tokenizer_hash:
            return cls.of(FastTokenizer.of_shards(Path(data_dir), manifest))
        path = path or Path(data_dir) / VOCABULARY
        entries = read_entries(path)
        expected = manifest.attributes
        if len(entries) != expected.vocabulary_size or vocabulary_hash(entries) != expected.vocabulary_hash:
            raise ValueError(
                f"{path}: not the vocabulary of the shards: {len(entries)} entries, expected"
                f" {expected.vocabulary_size} with SHA-256 {expected.vocabulary_hash[:12]}…"
            )
        missing = [name for name in SPECIAL_TOKENS if name not in manifest.special_tokens]
        if missing:
            raise ValueError(f"{data_dir}: manifest without special_tokens {', '.join(missing)}")
        return cls(
            size=len(entries),
            is_continuation=np.array([entry.startswith(CONTINUATION) for entry in entries], np.bool_),
            **{f"{name}_id": manifest.special_tokens[name] for name in SPECIAL_TOKENS},  # type: ignore[arg-type]
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
    vocabulary: MaskingVocabulary,
    seed: int,
    mask_probability: float | Float64Array = 0.15,
    unit: Unit = "token",
) -> MaskedTokens:
    """Mask B rows.

    A row with c candidates has a budget of p·c tokens, at least 1; a fraction is rounded up with a probability equal to
    it, so that rounding has no bias. By `token`, exactly this many tokens are masked. By `word` or `span`, these are
    chosen in random order; the first one is always masked. The one that would exceed the budget is masked with a
    probability equal to the share of it that fits, so that the expected number of masked tokens is still the budget,
    but for short rows, whose first span can be longer.

    Args:
        input_ids: `[B, S]` unmasked tokens, S at most 65,536.
        lengths: `[B]` tokens that are not padding.
        row_indices: `[B]` the rows' running indices in their split.
        epochs: `[B]` each row's epoch, in [0, 2^32); all 0 for static masks.
        vocabulary: the shards' vocabulary.
        seed: in [0, 2^32).
        mask_probability: p in (0, 1), one number or `[B]`.
        unit: `token`; `word`, a token with those after it that continue its word; or `span`, 1 to 10 words, 3.6 on
            average (after Joshi et al., "SpanBERT", TACL 2020, section 3.1).
    """
    seq_length = input_ids.shape[1]
    candidates = vocabulary.is_ordinary.take(input_ids)
    candidates &= np.arange(seq_length, dtype=np.int32) < lengths.astype(np.int32)[:, None]
    counts = candidates.view(np.uint8).sum(axis=1, dtype=np.uint32)
    selection, action, row_words = _random_words(seed, seq_length, row_indices, epochs)
    budgets = np.floor(mask_probability * counts + to_unit_interval(row_words[:, 0])).astype(np.int64)
    budgets = np.maximum(budgets, 1)
    if unit != "token":
        starts = _word_starts(input_ids, candidates, vocabulary)
        if unit == "span":
            starts = _span_starts(starts, candidates, selection)
        flat = _choose_words(candidates, selection, budgets, row_words[:, 1], starts)
    else:
        flat = choose_tokens(candidates, selection, np.minimum(budgets, counts))
    labels = input_ids.reshape(-1)[flat]
    masked = input_ids.copy()
    masked.reshape(-1)[flat] = _replace(labels, action.reshape(-1)[flat], vocabulary)
    return MaskedTokens(masked, flat, labels)


def _random_words(
    seed: int, seq_length: int, row_indices: Int64Array, epochs: Int64Array
) -> tuple[UInt32Array, UInt32Array, UInt32Array]:
    """Return random words: two per position, `[B, S]` each, and two per row, `[B, 2]`.

    Each counter gives four words, for two positions; the last counter of a row gives the row's own words.
    """
    blocks = (seq_length + 1) // 2
    rows = row_indices[:, None]
    counter = (np.arange(blocks + 1), rows & 0xFFFFFFFF, rows >> 32, epochs[:, None])
    word_0, word_1, word_2, word_3 = random_words(seed, Stream.MASKING, *counter)
    selection = np.concatenate((word_0[:, :blocks], word_1[:, :blocks]), axis=1)[:, :seq_length]
    action = np.concatenate((word_2[:, :blocks], word_3[:, :blocks]), axis=1)[:, :seq_length]
    return selection, action, np.stack((word_0[:, blocks], word_1[:, blocks]), axis=1)


def _keys(words: UInt32Array) -> NDArray[np.uint64]:
    """Return a sort key per position: its random word, then the position, so that all keys differ."""
    keys = words.astype(np.uint64)
    keys <<= _POSITION_BITS
    keys |= np.arange(words.shape[1], dtype=np.uint64)
    return keys


def choose_tokens(candidates: BoolArray, selection: UInt32Array, counts: Int64Array) -> Int64Array:
    """Return, for each row b, the `counts[b]` candidates with the smallest keys: flat indices, ascending."""
    words = np.where(candidates, selection, _NO_WORD)
    last = np.maximum(counts, 1)[:, None] - 1
    chosen = words <= np.take_along_axis(np.sort(words, axis=1), last, axis=1)
    chosen &= candidates
    flat = np.flatnonzero(chosen)
    if len(flat) != counts.sum():  # a tie of random words at the end of a row's choice: positions break it
        keys = np.where(candidates, _keys(selection), _NO_KEY)
        flat = np.flatnonzero(candidates & (keys <= np.take_along_axis(np.sort(keys, axis=1), last, axis=1)))
    return flat


def _word_starts(input_ids: Int64Array, candidates: BoolArray, vocabulary: MaskingVocabulary) -> BoolArray:
    starts = candidates.copy()
    starts[:, 1:] &= ~(vocabulary.is_continuation.take(input_ids[:, 1:]) & candidates[:, :-1])
    return starts


def _span_starts(word_starts: BoolArray, candidates: BoolArray, selection: UInt32Array) -> BoolArray:
    """Return where spans begin: after a special token, at each tenth word of a row, and at a fifth of all words.

    The last bits of `selection` decide; its first bits, which order the spans, are independent of them.
    """
    begins = (selection & 0xFFFF) < _SPAN_BEGINS_BELOW
    begins |= np.cumsum(word_starts, axis=1, dtype=np.int32) % _LONGEST_SPAN_WORDS == 0
    begins[:, 1:] |= ~candidates[:, :-1]
    return begins & word_starts


def _choose_words(
    candidates: BoolArray,
    selection: UInt32Array,
    budgets: Int64Array,
    row_words: UInt32Array,
    starts: BoolArray,
) -> Int64Array:
    """Return the tokens of the words or spans chosen in each row, which begin at `starts`: flat indices, ascending."""
    batch, seq_length = candidates.shape
    tokens = np.flatnonzero(candidates)
    word_of = np.cumsum(starts.reshape(-1), dtype=np.int32) - 1  # `[B · S]`: number of the token's word
    word_of_token = word_of[tokens]
    word_lengths = np.bincount(word_of_token, minlength=1)

    # A word has at least one token, so no row needs more words than its budget.
    most = int(budgets.max())
    ascending = np.partition(np.where(starts, _keys(selection), _NO_KEY), most - 1, axis=1)[:, :most]
    ascending = np.sort(ascending, axis=1)
    exists = ascending != _NO_KEY
    start_of = np.where(exists, (ascending & _POSITION_MASK).astype(np.int64), 0)
    start_of += np.arange(batch)[:, None] * seq_length
    words = np.maximum(word_of[start_of], 0)
    lengths = word_lengths[words] * exists
    before = np.cumsum(lengths, axis=1) - lengths
    # Chosen: words that fit, and the word that crosses the budget if the share of it that fits exceeds u.
    budget_left = budgets[:, None] - before
    chosen = exists & (budget_left > to_unit_interval(row_words)[:, None] * lengths)
    chosen[:, 0] = exists[:, 0]
    is_chosen = np.zeros(len(word_lengths), np.bool_)
    is_chosen[words[chosen]] = True
    return tokens[is_chosen[word_of_token]]


def _replace(labels: Int64Array, words: UInt32Array, vocabulary: MaskingVocabulary) -> Int64Array:
    """Return what replaces each chosen token: [MASK], a random entry, or the token itself."""
    replaced = np.where(words < _MASK_BELOW, vocabulary.mask_id, labels)
    random = np.flatnonzero((words >= _MASK_BELOW) & (words < _RANDOM_BELOW))
    # The word is uniform over the interval that it fell into, so it also selects the random entry.
    draws = (words[random].astype(np.int64) - _MASK_BELOW) * len(vocabulary.replacement_ids)
    replaced[random] = vocabulary.replacement_ids[draws // (_RANDOM_BELOW - _MASK_BELOW)]
    return replaced
