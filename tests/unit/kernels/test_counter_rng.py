"""Philox against its published test vectors, and the statistical properties of the draws."""

import numpy as np
import pytest

from bert_pld.rng import Stream, philox_4x32, random_words, to_unit_interval

ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)  # hexadecimal digits of π


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (PI[:4], PI[4:], (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, expected):
    assert tuple(int(word) for word in philox_4x32(*counter, key=key)) == expected


def test_vectorised_words_equal_single_words():
    rows, blocks = np.array([[5], [2**32 - 1]]), np.arange(3)
    together = random_words(9, Stream.MASKING, blocks, rows, 0, 4)
    assert all(words.shape == (2, 3) and words.dtype == np.uint32 for words in together)
    for i in range(2):
        for j in range(3):
            single = random_words(9, Stream.MASKING, j, int(rows[i, 0]), 0, 4)
            assert [int(words[i, j]) for words in together] == [int(word) for word in single]


def test_seed_stream_and_each_counter_word_change_the_draw():
    base = (1, Stream.ORDER, 0, 0, 0, 0)
    draws = {tuple(int(w) for w in random_words(*base))}
    for index, value in ((0, 2), (1, Stream.MASKING), (2, 1), (3, 1), (4, 1), (5, 1)):
        draws.add(tuple(int(w) for w in random_words(*(*base[:index], value, *base[index + 1 :]))))
    assert len(draws) == 7


def test_words_are_uniform_and_uncorrelated():
    words = random_words(3, Stream.GATES, np.arange(100_000))
    units = [to_unit_interval(w) for w in words]
    for unit in units:
        assert abs(unit.mean() - 0.5) < 5 * np.sqrt(1 / 12 / len(unit))
        observed = np.bincount((unit * 64).astype(int), minlength=64)
        chi_square = ((observed - len(unit) / 64) ** 2 / (len(unit) / 64)).sum()
        assert chi_square < 63 + 5 * np.sqrt(2 * 63)
    off_diagonal = np.corrcoef(units)[np.triu_indices(4, 1)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(len(units[0]))


def test_unit_interval_excludes_one():
    assert to_unit_interval(np.array([0, ONES], np.uint32)).tolist() == [0.0, 1 - 2.0**-32]


def test_seed_outside_its_range_is_rejected():
    with pytest.raises(AssertionError, match="outside"):
        random_words(2**32, Stream.ORDER)
