"""Masking follows BERT's rule in numbers, and depends on (seed, epoch, row) alone."""

import dataclasses
import hashlib

import numpy as np
import pytest
from synthetic_rows import SPECIAL_TOKENS, make_rows

from bert_pld.data.masking import MaskingVocabulary, choose_tokens, mask_tokens
from bert_pld.data.shards import Manifest

SPECIAL_IDS = list(SPECIAL_TOKENS.values())
TOLERANCE = {"token": 0.001, "word": 0.001, "span": 0.015}
"""A row's first span is masked even if it is longer than the budget, which is 3 to 6 tokens at the lowest rate here."""


@pytest.fixture(scope="module")
def corpus():
    """4,000 rows of 128."""
    return make_rows(np.random.Generator(np.random.PCG64(1)), 4000, 128, 1000)


def mask(corpus, vocabulary, rows=None, epoch=0, seed=5, **options):
    rows = np.arange(len(corpus["length"])) if rows is None else np.asarray(rows)
    ids, lengths = corpus["input_ids"][rows], corpus["length"][rows]
    return mask_tokens(ids, lengths, rows, np.full(len(rows), epoch), vocabulary=vocabulary, seed=seed, **options)


def candidates_of(corpus):
    inside = np.arange(corpus["input_ids"].shape[1]) < corpus["length"][:, None]
    return inside & ~np.isin(corpus["input_ids"], SPECIAL_IDS)


@pytest.mark.parametrize("probability", [0.05, 0.15, 0.4])
@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_share_of_masked_candidates_is_the_mask_probability(corpus, vocabulary, unit, probability):
    masked = mask(corpus, vocabulary, unit=unit, mask_probability=probability)
    assert abs(len(masked.positions) / candidates_of(corpus).sum() - probability) < TOLERANCE[unit]
    counts = np.bincount(masked.positions // 128, minlength=4000)
    assert counts.min() >= 1
    if unit == "token":
        budgets = np.maximum(probability * candidates_of(corpus).sum(axis=1), 1)
        assert (np.abs(counts - budgets) < 1).all()


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_labels_are_the_originals_and_other_tokens_stay(corpus, vocabulary, unit):
    before = corpus["input_ids"].copy()
    masked = mask(corpus, vocabulary, unit=unit)
    assert (corpus["input_ids"] == before).all()
    assert (masked.labels == before.reshape(-1)[masked.positions]).all()
    assert (np.diff(masked.positions) > 0).all()
    rest = np.ones(before.size, bool)
    rest[masked.positions] = False
    assert (masked.input_ids.reshape(-1)[rest] == before.reshape(-1)[rest]).all()
    assert candidates_of(corpus).reshape(-1)[masked.positions].all()


def test_padding_is_never_masked_even_if_it_has_ordinary_ids(corpus, vocabulary):
    ids = np.where(corpus["input_ids"] == 0, 500, corpus["input_ids"])
    masked = mask({**corpus, "input_ids": ids}, vocabulary)
    assert (masked.positions % 128 < corpus["length"][masked.positions // 128]).all()


def test_random_replacements_are_uniform_over_the_ordinary_entries(corpus, vocabulary):
    drawn = []
    for epoch in range(4):
        masked = mask(corpus, vocabulary, epoch=epoch)
        now = masked.input_ids.reshape(-1)[masked.positions]
        drawn.append(now[(now != vocabulary.mask_id) & (now != masked.labels)])
    frequencies = np.bincount(np.concatenate(drawn), minlength=1000)
    assert frequencies[SPECIAL_IDS].sum() == 0
    ordinary = np.delete(frequencies, SPECIAL_IDS)
    expected = ordinary.sum() / len(ordinary)
    degrees = len(ordinary) - 1
    assert ((ordinary - expected) ** 2 / expected).sum() < degrees + 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_every_position_is_masked_equally_often(vocabulary, unit):
    row = make_rows(np.random.Generator(np.random.PCG64(2)), 1, 64, 1000, full=True)
    epochs = 4000
    ids, lengths = np.repeat(row["input_ids"], epochs, axis=0), np.repeat(row["length"], epochs)
    options = {"vocabulary": vocabulary, "seed": 1, "unit": unit}
    masked = mask_tokens(ids, lengths, np.zeros(epochs, np.int64), np.arange(epochs), **options)
    rates = np.bincount(masked.positions % 64, minlength=64)[candidates_of(row)[0]] / epochs
    assert abs(rates.mean() - 0.15) < TOLERANCE[unit]
    # Long words cross the budget slightly more often than short ones, so rates differ a little.
    assert np.abs(rates - 0.15).max() < (0.04 if unit != "token" else 5 * np.sqrt(0.15 * 0.85 / epochs))


def test_all_pieces_of_a_word_are_masked_together(corpus, vocabulary):
    masked = mask(corpus, vocabulary, unit=True)
    chosen = np.zeros(corpus["input_ids"].size, bool)
    chosen[masked.positions] = True
    chosen = chosen.reshape(4000, 128)
    candidates = candidates_of(corpus)
    continues = vocabulary.is_continuation[corpus["input_ids"]][:, 1:] & candidates[:, 1:] & candidates[:, :-1]
    assert continues.sum() > 50_000
    assert (chosen[:, 1:][continues] == chosen[:, :-1][continues]).all()
    counts = chosen.sum(axis=1)
    assert np.abs(counts - 0.15 * candidates.sum(axis=1)).max() < 12  # within one word of the budget


def test_spans_are_runs_of_one_to_ten_words(vocabulary):
    """Rows of words of one token, with a rate so low that each row has one span."""
    ids = np.full((6000, 512), 900, np.int64)
    special = [0, 200, 511]
    ids[:, special] = [SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"], SPECIAL_TOKENS["sep"]]
    plain, each = dataclasses.replace(vocabulary, is_continuation=np.zeros(1000, bool)), np.arange(6000)
    options = {"vocabulary": plain, "seed": 2, "mask_probability": 1e-4, "unit": "span"}
    masked = mask_tokens(ids, np.full(6000, 512), each, each, **options)
    chosen = np.zeros(ids.shape, bool)
    chosen.reshape(-1)[masked.positions] = True
    assert not chosen[:, special].any()
    edges = np.diff(chosen.astype(int), axis=1)
    assert ((edges == 1).sum(axis=1) == 1).all()
    lengths = chosen.sum(axis=1)
    assert (lengths.min(), lengths.max()) == (1, 10)
    # A span ends after a word with probability 0.2, and at each tenth word of the row: in all, with 0.28.
    assert abs(lengths.mean() - 1 / 0.28) < 0.1
    shares = np.bincount(lengths, minlength=5)[1:5] / 6000
    assert np.abs(shares - 0.28 * 0.72 ** np.arange(4)).max() < 0.03


def test_whole_word_masking_equals_token_masking_if_every_word_is_one_token(corpus, vocabulary):
    vocabulary = dataclasses.replace(vocabulary, is_continuation=np.zeros(1000, bool))
    tokens, words = (mask(corpus, vocabulary, unit=unit) for unit in ("token", "word"))
    assert tokens.positions.tolist() == words.positions.tolist()
    assert (tokens.input_ids == words.input_ids).all()


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_masks_depend_on_seed_epoch_and_row_alone(corpus, vocabulary, unit):
    together = mask(corpus, vocabulary, epoch=3, unit=unit)
    some = np.array([1999, 4, 7, 3000])
    apart = mask(corpus, vocabulary, rows=some, epoch=3, unit=unit)
    assert (apart.input_ids == together.input_ids[some]).all()
    for place, row in enumerate(some):
        mine = apart.positions[apart.positions // 128 == place] % 128
        assert mine.tolist() == (together.positions[together.positions // 128 == row] % 128).tolist()
    long = corpus["length"] == 128  # short rows have few masks, which may coincide
    for change in ({"epoch": 4}, {"epoch": 3, "seed": 6}):
        other = mask(corpus, vocabulary, **change, unit=unit)
        assert (other.input_ids != together.input_ids).any(axis=1)[long].all()


def test_row_indices_beyond_32_bits_give_different_masks(vocabulary):
    row = make_rows(np.random.Generator(np.random.PCG64(3)), 1, 128, 1000, full=True)
    ids, lengths = np.repeat(row["input_ids"], 2, axis=0), np.repeat(row["length"], 2)
    masked = mask_tokens(ids, lengths, np.array([1, 2**32 + 1]), np.zeros(2, int), vocabulary=vocabulary, seed=0)
    assert (masked.input_ids[0] != masked.input_ids[1]).any()


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_rows_with_one_candidate_or_none(vocabulary, unit):
    """A single candidate is always masked; a row without one has no mask. The sequence length is odd."""
    ids = np.array([[101, 555, 102, 0, 0], [101, 102, 0, 0, 0], [101, 100, 102, 0, 0]])
    each, options = (np.array([3, 2, 3]), np.arange(3), np.zeros(3, int)), {"vocabulary": vocabulary, "seed": 0}
    masked = mask_tokens(ids, *each, **options, unit=unit)
    assert masked.positions.tolist() == [1]
    assert masked.labels.tolist() == [555]


def test_vocabulary_is_read_and_checked(make_data_dir):
    directory, _ = make_data_dir()
    manifest = Manifest.read(directory)
    vocabulary = MaskingVocabulary.read(directory, manifest)
    assert vocabulary.special_ids == (0, 100, 101, 102, 103)
    assert vocabulary.is_continuation[[102, 105, 106, 108]].tolist() == [False, True, False, True]
    assert len(vocabulary.replacement_ids) == 995
    path = directory / "vocab.txt"
    path.write_text(path.read_text().replace("w200\n", "w201x\n"))
    with pytest.raises(ValueError, match=r"vocab\.txt: not the vocabulary of the shards: 1000 entries, expected"):
        MaskingVocabulary.read(directory, manifest)
    path.unlink()
    with pytest.raises(ValueError, match=r"vocab\.txt: not a readable vocabulary"):
        MaskingVocabulary.read(directory, manifest)


def test_invalid_special_token_ids_are_refused():
    for mask_id in (10, 3):
        with pytest.raises(ValueError, match=r"different ids in \[0, 10\)"):
            MaskingVocabulary(10, 0, 1, 2, 3, mask_id, np.zeros(10, bool))


@pytest.mark.parametrize(
    ("seq_length", "unit", "probability", "digest"),
    [
        (128, "token", 0.15, "680ad7b280091d59"),
        (128, "token", 0.4, "3f52bf6de3967f48"),
        (128, "word", 0.15, "4f491ed71e74940c"),
        (128, "word", 0.4, "80a63f05e469cc71"),
        (37, "token", 0.15, "9948e66a0783e8b4"),
        (37, "word", 0.4, "d9f0a497a661361c"),
    ],
)
def test_masks_equal_those_of_earlier_versions_bitwise(vocabulary, seq_length, unit, probability, digest):
    corpus = make_rows(np.random.Generator(np.random.PCG64(1)), 300, seq_length, 1000)
    each = np.arange(300)
    rows, epochs = each * 7919 + 2**33 * (each % 2), each % 3
    options = {"vocabulary": vocabulary, "seed": 5, "mask_probability": probability, "unit": unit}
    masked = mask_tokens(corpus["input_ids"], corpus["length"], rows, epochs, **options)
    content = b"".join(part.astype("<i8").tobytes() for part in (masked.input_ids, masked.positions, masked.labels))
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_ties_of_random_words_are_broken_by_position():
    """Two 32-bit words are equal in about one of a hundred thousand rows; the earlier position is chosen first."""
    candidates = np.array([[True, True, False, True, True], [True] * 5, [False] * 5, [False, True, True, False, True]])
    top = 2**32 - 1
    selection = np.array([[7, 3, 0, 7, 7], [9] * 5, [1, 2, 3, 4, 5], [0, top, top, 5, top]], np.uint32)
    for counts, expected in (
        ([2, 3, 0, 2], [0, 1, 5, 6, 7, 16, 17]),
        ([3, 1, 0, 1], [0, 1, 3, 5, 16]),
        ([4, 5, 0, 3], [0, 1, 3, 4, 5, 6, 7, 8, 9, 16, 17, 19]),
        ([1, 5, 0, 3], [1, 5, 6, 7, 8, 9, 16, 17, 19]),
    ):
        assert choose_tokens(candidates, selection, np.array(counts)).tolist() == expected


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_shares_are_exact_over_two_million_tokens(vocabulary, unit):
    """15 % of the candidates within 0.1 points, 80/10/10 within 0.2; special tokens neither masked nor drawn."""
    corpus = make_rows(np.random.Generator(np.random.PCG64(4)), 20_000, 128, 1000)
    assert corpus["length"].sum() > 2_000_000
    masked = mask(corpus, vocabulary, unit=unit)
    candidates = candidates_of(corpus)
    assert abs(len(masked.positions) / candidates.sum() - 0.15) < TOLERANCE[unit]
    now = masked.input_ids.reshape(-1)[masked.positions]
    assert not np.isin(masked.labels, SPECIAL_IDS).any()
    is_mask = now == vocabulary.mask_id
    assert not np.isin(now[~is_mask], SPECIAL_IDS).any()
    # One in 995 random replacements is the original token itself.
    same = (now == masked.labels).mean() - 0.1 / len(vocabulary.replacement_ids)
    for share, expected in ((is_mask.mean(), 0.8), (same, 0.1), (1 - is_mask.mean() - same, 0.1)):
        assert abs(share - expected) < 0.002
