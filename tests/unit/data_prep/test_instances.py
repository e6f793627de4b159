import numpy as np
import pytest
from numbered_documents import (
    FIRST_ID,
    SPECIAL,
    TEMPLATE,
    assert_framed_and_padded,
    document_of,
    numbered_documents,
    random_documents,
)

from data_prep.rows.instances import packed_rows, pair_rows
from data_prep.rows.tokens import split_long_segments


def pairs(documents, seq_length=64, seed=5, group=0, split="train"):
    no_continuations = np.zeros(FIRST_ID + len(documents.tokens), bool)
    return pair_rows(documents, seq_length, TEMPLATE, no_continuations, seed, split, group)


def segments_of(rows, n):
    length, b_start = int(rows["length"][n]), int(rows["segment_b_start"][n])
    ids = rows["input_ids"][n]
    return ids[1 : b_start - 1], ids[b_start : length - 1]


@pytest.mark.parametrize("lengths", [(1, 12), (5, 40), (30, 200)])
def test_pair_rows_have_the_layout_of_bert(lengths):
    rows = pairs(random_documents(60, (1, 30), lengths))
    assert_framed_and_padded(rows, 64)
    ids, length, b_start = rows["input_ids"], rows["length"], rows["segment_b_start"]
    assert np.all(ids[np.arange(len(ids)), b_start - 1] == SPECIAL["sep"])
    assert np.all((ids == SPECIAL["sep"]).sum(1) == 2)
    assert np.all(b_start >= 3)
    assert np.all(b_start <= length - 2)
    for n in range(len(ids)):
        a, b = segments_of(rows, n)
        assert np.all(np.diff(a.astype(int)) == 1)
        assert np.all(np.diff(b.astype(int)) == 1)


def test_label_states_whether_b_follows_a():
    documents = random_documents(60, (1, 30), (5, 25))
    rows = pairs(documents)
    for n, label in enumerate(rows["next_sentence_label"]):
        a, b = segments_of(rows, n)
        same = document_of(documents, a[-1:]) == document_of(documents, b[:1])
        assert len(set(document_of(documents, a))) == len(set(document_of(documents, b))) == 1
        assert same == (label == 0)
        if label == 0:
            assert b[0] > a[-1]


@pytest.mark.parametrize("lengths", [(3, 9), (5, 40), (50, 130)])
def test_half_of_the_pairs_are_random_for_any_sentence_length(lengths):
    rows = pairs(random_documents(400, (1, 40), lengths))
    label = np.asarray(rows["next_sentence_label"])
    assert len(label) > 1000
    assert abs(label.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(label))


def test_one_row_in_ten_is_short():
    rows = pairs(random_documents(8, (8000, 8001), (1, 2)), seq_length=128)
    length = np.asarray(rows["length"])
    assert len(length) > 400
    short = (length < 128).mean()
    assert abs(short - 0.1) < 4 * np.sqrt(0.09 / len(length))
    assert length.min() < 30


def test_all_tokens_of_long_documents_are_used():
    documents = random_documents(30, (20, 40), (1, 2))
    rows = pairs(documents)
    used = np.unique(np.concatenate([np.concatenate(segments_of(rows, n)) for n in range(len(rows["length"]))]))
    assert len(used) == len(documents.tokens)


def test_random_numbers_depend_only_on_seed_split_and_group():
    documents = random_documents(30, (5, 30), (5, 25))
    first = pairs(documents)
    assert all(np.array_equal(first[name], column) for name, column in pairs(documents).items())
    for change in ({"seed": 6}, {"group": 1}, {"split": "validation"}):
        other = pairs(documents, **change)
        assert not np.array_equal(first["next_sentence_label"][:40], other["next_sentence_label"][:40])


def test_random_b_of_a_single_document_comes_from_elsewhere_in_it():
    rows = pairs(numbered_documents([[10] * 60]))
    label = np.asarray(rows["next_sentence_label"])
    assert 0 < label.sum() < len(label)
    for n in np.flatnonzero(label):
        a, b = segments_of(rows, n)
        assert not a[0] <= b[0] <= a[-1] + 1


def test_single_token_gives_no_row():
    assert len(pairs(numbered_documents([[1]]))["length"]) == 0


def test_long_segments_are_cut_between_words():
    documents = numbered_documents([[100], [3, 4], [1]])
    is_continuation = np.zeros(200, bool)
    is_continuation[FIRST_ID + 33] = True  # the ideal place of the first of two cuts
    cut = split_long_segments(documents, 40, is_continuation)
    lengths = np.diff(cut.segment_starts)
    assert lengths.max() <= 40
    assert cut.document_starts.tolist() == [0, 3, 5, 6]
    assert lengths.sum() == 108
    assert not is_continuation[documents.tokens[cut.segment_starts[:-1]]].any()


@pytest.mark.parametrize("longest", [1, 2, 7, 30])
def test_no_part_of_a_segment_is_too_long_wherever_words_begin(longest):
    random = np.random.default_rng(longest)
    for _ in range(200):
        lengths = random.integers(1, 6 * longest + 2, size=3)
        documents = numbered_documents([[int(n)] for n in lengths])
        is_continuation = random.random(FIRST_ID + int(lengths.sum()) + 1) < random.choice([0.1, 0.6, 0.95])
        cut = split_long_segments(documents, longest, is_continuation)
        parts = np.diff(cut.segment_starts)
        assert 1 <= parts.min() <= parts.max() <= longest
        assert parts.sum() == lengths.sum()


@pytest.mark.parametrize("sizes", [[[5, 7], [3], [40, 2]], [[30]], [[31]], [[1]], [[29], [1]]])
def test_packed_rows_contain_every_token_once_in_order(sizes):
    documents = numbered_documents(sizes)
    rows = packed_rows(documents, 32, TEMPLATE)
    ids, length = rows["input_ids"], rows["length"]
    body = np.concatenate([row[1 : n - 1] for row, n in zip(ids, length, strict=True)])
    assert np.array_equal(body[body >= FIRST_ID], documents.tokens)
    assert (body == SPECIAL["sep"]).sum() == len(sizes) - 1
    assert np.all(length[:-1] == 32)
    assert_framed_and_padded(rows, 32)
    assert np.array_equal(rows["segment_b_start"], length)
    assert set(rows["next_sentence_label"]) == {-1}


def test_group_without_a_token_gives_no_packed_row():
    rows = packed_rows(numbered_documents([]), 32, TEMPLATE)
    assert rows["input_ids"].shape == (0, 32)
    assert [len(rows[name]) for name in ("length", "segment_b_start", "next_sentence_label")] == [0, 0, 0]
