"""Both orders of samples: a random-looking permutation for each epoch, whichever positions are queried together.

If samples are shuffled by blocks, a window's rows come from its blocks alone.
"""

import hashlib
import itertools
import math

import numpy as np
import pytest

from bert_pld.data.block_order import BlockOrder, WindowReadAhead
from bert_pld.data.order import BatchShare, GlobalOrder


def assert_permutations(order):
    rows, epochs = order.rows_at(np.arange(3 * order.num_rows))
    assert (np.sort(rows.reshape(3, order.num_rows), axis=1) == np.arange(order.num_rows)).all(), order
    assert epochs.tolist() == np.repeat(np.arange(3), order.num_rows).tolist()


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17, 97, 1000, 4097, 65_536])
def test_each_epoch_is_a_permutation(num_rows):
    assert_permutations(GlobalOrder(num_rows, 11))


@pytest.mark.parametrize("window_blocks", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("block_rows", [1, 2, 3, 5, 8, 100])
def test_each_epoch_of_blocks_is_a_permutation_for_every_small_split(block_rows, window_blocks):
    for num_rows in [*range(1, 34), 47, 64, 97]:
        assert_permutations(BlockOrder(num_rows, 11, block_rows, window_blocks))


@pytest.mark.parametrize("sizes", [(4097, 2, 64, 5), (65_536, 2, 256, 8), (9973, 2, 17, 13)])
def test_each_epoch_of_blocks_is_a_permutation_for_larger_splits(sizes):
    assert_permutations(BlockOrder(*sizes))


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


def test_huge_splits_in_blocks_stay_in_range_and_injective():
    num_rows = 10**12 + 39
    order = BlockOrder(num_rows, 3, 4096, 64)
    for positions in (num_rows * 5 + np.arange(600) * 1_482_710_033, num_rows * 6 - 300 + np.arange(600)):
        rows, _ = order.rows_at(positions)
        assert 0 <= rows.min() < rows.max() < num_rows
        epochs = positions // num_rows
        assert len(set(zip(rows.tolist(), epochs.tolist(), strict=True))) == len(rows)


@pytest.mark.parametrize(
    "order", [GlobalOrder(37, 2), BlockOrder(37, 2, 4, 3), BlockOrder(500, 2, 7, 5), BlockOrder(64, 2, 8, 2)], ids=str
)
def test_rows_do_not_depend_on_the_positions_queried_together(order):
    positions = np.arange(max(3 * order.num_rows, 500))
    rows, epochs = order.rows_at(positions)
    shuffled = np.random.Generator(np.random.PCG64(0)).permutation(len(positions))
    again, epochs_again = order.rows_at(positions[shuffled])
    assert again.tolist() == rows[shuffled].tolist()
    assert epochs_again.tolist() == epochs[shuffled].tolist()
    assert [int(order.rows_at(np.array([p]))[0][0]) for p in positions] == rows.tolist()


def test_order_has_not_changed_since_earlier_checkpoints():
    digest = hashlib.sha256(BlockOrder(997, 5, 16, 4).rows_at(np.arange(3000))[0].astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "04fecd07b478a302"
    digest = hashlib.sha256(GlobalOrder(997, 5).rows_at(np.arange(3000))[0].astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "8fd18b53f24eb77e"


@pytest.mark.parametrize(("num_rows", "block_rows", "window_blocks"), [(10_000, 64, 8), (9_999, 100, 3), (640, 64, 4)])
def test_rows_of_a_window_are_a_few_contiguous_pieces(num_rows, block_rows, window_blocks):
    order = BlockOrder(num_rows, 9, block_rows, window_blocks)
    position, windows = 0, 0
    while position < 2 * num_rows:
        window = order.window_at(position)
        assert window.first_position == position
        assert 0 < window.size <= block_rows * window_blocks
        ranges = window.row_ranges(num_rows)
        assert len(ranges) <= window_blocks + 1  # one block may cross the end of the split
        assert all(0 <= first < first + count <= num_rows for first, count in ranges)
        expected = sorted(itertools.chain.from_iterable(range(first, first + count) for first, count in ranges))
        found, _ = order.rows_at(np.arange(position, position + window.size))
        assert np.sort(found).tolist() == expected
        assert order.window_at(position + window.size - 1) == window
        position, windows = position + window.size, windows + 1
    assert position == 2 * num_rows
    assert windows == 2 * math.ceil(math.ceil(num_rows / block_rows) / window_blocks)


def test_successive_rows_come_from_few_regions_of_a_file():
    """16,384 successive rows of 256 bytes: in at most 32 regions of 1 MiB, against all 256 in the global order."""
    order, num_rows = BlockOrder(2**20, 0, 1024, 16), 2**20
    blocks = order.rows_at(np.arange(16_384))[0] // 4096
    assert len(np.unique(blocks)) <= 32
    assert len(np.unique(GlobalOrder(num_rows, 0).rows_at(np.arange(16_384))[0] // 4096)) == 256


def test_epochs_and_seeds_differ_in_blocks_rows_and_bounds():
    order = BlockOrder(4000, 1, 64, 4)
    rows = order.rows_at(np.arange(8000))[0].reshape(2, 4000)
    other = BlockOrder(4000, 2, 64, 4).rows_at(np.arange(4000))[0]
    for a, b in ((rows[0], rows[1]), (rows[0], other)):
        assert (a == b).sum() < 12
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.3  # 62 blocks: a bound of about two standard deviations of block order
    bounds = [{first % 64 for first, _ in order.window_at(epoch * 4000).row_ranges(4000)} for epoch in range(8)]
    assert len(set.union(*bounds)) > 5


@pytest.mark.parametrize(("num_rows", "block_rows", "window_blocks"), [(10, 4, 2), (7, 2, 1), (6, 6, 1)])
def test_every_row_is_at_every_position_equally_often(num_rows, block_rows, window_blocks):
    """Chi-square test of row against position over 800 epochs; block sizes divide the split or do not."""
    epochs = 800
    order = BlockOrder(num_rows, 4, block_rows, window_blocks)
    rows = order.rows_at(np.arange(epochs * num_rows))[0].reshape(epochs, num_rows)
    seen = np.stack([np.bincount(rows[:, place], minlength=num_rows) for place in range(num_rows)])
    expected = epochs / num_rows
    degrees = (num_rows - 1) ** 2
    assert ((seen - expected) ** 2 / expected).sum() < degrees + 5 * np.sqrt(2 * degrees)


def test_rows_of_a_window_are_in_random_order():
    window = BlockOrder(2**16, 8, 512, 32).window_at(0)
    rows, _ = BlockOrder(2**16, 8, 512, 32).rows_at(np.arange(window.size))
    rank = np.argsort(np.argsort(rows))
    bound = 5 / np.sqrt(window.size)
    assert abs(np.corrcoef(rank, np.arange(window.size))[0, 1]) < bound
    assert abs(np.corrcoef(rank[1:], rank[:-1])[0, 1]) < bound
    assert abs((np.diff(rows) > 0).mean() - 0.5) < bound


def test_invalid_sizes_of_blocks_are_refused():
    for sizes, message in (((0, 4), "shuffle_block_rows 0: must be"), ((4, 0), "shuffle_window_blocks 0: must be")):
        with pytest.raises(ValueError, match=message):
            BlockOrder(10, 0, *sizes)
    with pytest.raises(ValueError, match="shuffle_block_rows 1: too small for"):
        BlockOrder(2**40, 0, 1, 4)
    with pytest.raises(ValueError, match="position -1"):
        BlockOrder(10, 0, 4, 4).rows_at(np.array([-1]))


def test_window_is_read_ahead_once_and_before_it_is_needed():
    class Recorder:
        def __init__(self):
            self.requested = []

        def read_ahead(self, first, count):
            self.requested += range(first, first + count)

    rows, order = Recorder(), BlockOrder(100, 0, 8, 3)
    ahead = WindowReadAhead(rows, order)
    for position in range(5, 300, 6):
        ahead.advance_to(position)
        upto = order.window_at(position)
        upto = order.window_at(upto.first_position + upto.size)
        assert sorted(rows.requested) == sorted(order.rows_at(np.arange(upto.first_position + upto.size))[0].tolist())
