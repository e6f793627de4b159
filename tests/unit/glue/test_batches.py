"""The order and the batches of examples, and the learning-rate schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bert_pld.glue.batches import collate, evaluation_rows, training_order
from bert_pld.glue.data import Encoded
from bert_pld.glue.finetune import linear_schedule


def test_learning_rate_rises_and_falls_linearly():
    shares = [linear_schedule(step, 100, 0.1) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == 1.0
    assert shares[55] == pytest.approx(0.5)
    assert shares[100] == 0.0


def test_epoch_has_every_row_once_and_fills_the_last_batch():
    lengths = np.random.default_rng(0).integers(5, 60, 1003)
    first = training_order(lengths, 16, seed=1, epoch=0)
    assert {len(batch) for batch in first} == {16}
    assert len(first) == 63
    rows, counts = np.unique(np.concatenate(first), return_counts=True)
    assert len(rows) == 1003
    assert counts.sum() == 63 * 16
    assert counts.max() == 2
    for other in (training_order(lengths, 16, seed=1, epoch=1), training_order(lengths, 16, seed=2, epoch=0)):
        assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    again = training_order(lengths, 16, seed=1, epoch=0)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    spread = np.mean([np.ptp(lengths[batch]) for batch in first])
    assert spread < 0.2 * np.ptp(lengths)


def test_evaluation_rows_are_divided_among_ranks_in_equally_many_batches():
    encoded = Encoded([[1] * n for n in (3, 9, 4, 7, 5)], [[0] * n for n in (3, 9, 4, 7, 5)], None, 0)
    batches = [list(evaluation_rows(encoded, 2, rank, 2)) for rank in range(2)]
    assert sorted(np.concatenate([*batches[0], *batches[1]])) == [0, 1, 2, 3, 4]
    assert [len(rows) for rows in batches[0]] == [2, 1]
    assert [len(rows) for rows in batches[1]] == [2, 0]  # empty, because all ranks need the same number of batches


def test_batch_is_padded_and_its_padding_masked():
    encoded = Encoded([[2, 5, 3], [2, 3]], [[0, 0, 1], [0, 0]], np.array([1.0, 0.0]), 0)
    inputs, labels = collate(encoded, np.array([1, 0]), 9, torch.device("cpu"), classes=True)
    assert inputs["input_ids"].tolist() == [[2, 3, 9], [2, 5, 3]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert inputs["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert labels.tolist() == [0, 1]
