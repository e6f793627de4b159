"""The order of samples is a random-looking permutation for each epoch, whichever positions are queried together."""

import numpy as np
import pytest

from bert_pld.data.order import BatchShare, GlobalOrder


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17, 97, 1000, 4097, 65_536])
def test_each_epoch_is_a_permutation(num_rows):
    rows, epochs = GlobalOrder(num_rows, 11).rows_at(np.arange(3 * num_rows))
    assert (np.sort(rows.reshape(3, num_rows), axis=1) == np.arange(num_rows)).all()
    assert epochs.tolist() == np.repeat(np.arange(3), num_rows).tolist()


def test_huge_splits_stay_in_range_and_injective():
    num_rows = 10**12 + 39
    positions = num_rows * 5 + np.arange(20_000) * 48_271
    rows, epochs = GlobalOrder(num_rows, 3).rows_at(positions)
    assert rows.min() >= 0
    assert rows.max() < num_rows
    assert len(np.unique(rows)) == len(rows)
    assert set(epochs.tolist()) == {5}


@pytest.mark.parametrize(("num_rows", "permutations"), [(2, 2), (3, 6), (4, 24)])
def test_all_permutations_of_few_rows_are_equally_frequent(num_rows, permutations):
    epochs = 6000
    rows = GlobalOrder(num_rows, 5).rows_at(np.arange(epochs * num_rows))[0].reshape(epochs, num_rows)
    seen = np.unique(rows @ (num_rows ** np.arange(num_rows)), return_counts=True)[1]
    assert len(seen) == permutations
    expected = epochs / permutations
    assert ((seen - expected) ** 2 / expected).sum() < permutations - 1 + 6 * np.sqrt(2 * (permutations - 1))


@pytest.mark.parametrize("num_rows", [9973, 65_536])
def test_order_passes_statistical_tests(num_rows):
    """There is no correlation within an epoch, between neighbours, between epochs or between seeds."""
    rows = GlobalOrder(num_rows, 1).rows_at(np.arange(2 * num_rows))[0].reshape(2, num_rows)
    other_seed = GlobalOrder(num_rows, 2).rows_at(np.arange(num_rows))[0]
    bound = 5 / np.sqrt(num_rows)
    for a, b in (
        (rows[0], np.arange(num_rows)),
        (rows[0][1:], rows[0][:-1]),
        (rows[0][256:], rows[0][:-256]),
        (rows[0], rows[1]),
        (rows[0], other_seed),
    ):
        assert abs(np.corrcoef(a, b)[0, 1]) < bound
    # The first tenth of an epoch falls evenly into 16 parts of the split: chi-square, 15 degrees of freedom.
    taken = rows[0][: num_rows // 10]
    parts = np.bincount(taken * 16 // num_rows, minlength=16)
    expected = len(taken) / 16
    assert ((parts - expected) ** 2 / expected).sum() < 44  # p = 1e-4
    # Differences between successive rows: in a random order, half are positive and hardly any is 1.
    steps = np.diff(rows[0])
    assert abs((steps > 0).mean() - 0.5) < bound
    assert (np.abs(steps) == 1).sum() < 20
    # Fixed points: a random permutation has one on average.
    assert (rows[0] == np.arange(num_rows)).sum() < 9
    assert (rows[0] == rows[1]).sum() < 9


@pytest.mark.parametrize(
    ("micro_batch_size", "accumulation_steps", "world_size"), [(24, 1, 1), (2, 12, 1), (4, 3, 2), (6, 1, 4), (1, 3, 8)]
)
def test_step_has_the_same_positions_however_it_is_divided(micro_batch_size, accumulation_steps, world_size):
    for step in (0, 7):
        parts = [
            BatchShare(micro_batch_size, accumulation_steps, rank, world_size).positions(step, micro_step)
            for micro_step in range(accumulation_steps)
            for rank in range(world_size)
        ]
        assert np.concatenate(parts).tolist() == list(range(step * 24, step * 24 + 24))


def test_invalid_positions_are_refused():
    with pytest.raises(ValueError, match="position -1"):
        GlobalOrder(5, 0).rows_at(np.array([3, -1]))
    with pytest.raises(ValueError, match="number of rows 0"):
        GlobalOrder(0, 0).rows_at(np.array([0]))
    assert [len(part) for part in GlobalOrder(5, 0).rows_at(np.empty(0, np.int64))] == [0, 0]
