"""Shuffling by blocks, for file systems on which reading a random row is slow: rows are read in contiguous pieces.

In each epoch, the split is rotated by a random number of rows and cut into blocks of `block_rows`, the last of which
may be shorter. The blocks are put in random order, the short one at a random place. `window_blocks` blocks form a
window, and rows are in random order within their window. So a window's samples come from `window_blocks` contiguous
pieces of the shards, which can be read ahead in large requests, and the cache must hold only two windows.

As in the global order, everything is a function of (seed, epoch, position), and each place is computed directly,
without a table of rows. Because of the rotation, the bounds of the blocks differ from epoch to epoch, and each row has
the same chance of each position, whether or not the sizes divide.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from bert_pld.config import DataConfig
from bert_pld.data.order import GlobalOrder, Int64Array, UInt64Array, check_positions, permute, round_keys
from bert_pld.data.rows import ShardedRows
from bert_pld.rng import Stream, random_words

_BLOCKS, _ROWS, _ROTATION = 1, 2, 3
"""Purposes of keys (`order.round_keys`); the global order's is 0."""


@dataclasses.dataclass(frozen=True)
class Window:
    """Successive positions of the stream whose samples come from a few contiguous pieces of the split."""

    first_position: int
    size: int
    """Number of positions, which is the number of rows."""
    rotation: int
    """Rows by which the split is rotated in this epoch."""
    keys: UInt64Array
    block_rows: Int64Array
    """`[blocks]` first row of each block, before the rotation."""
    block_offsets: Int64Array
    """`[blocks + 1]` start of each block in the window before its rows are permuted; the last entry is `size`."""

    def row_ranges(self, num_rows: int) -> list[tuple[int, int]]:
        """Return the pieces as (first row, number of rows); a block across the split's end gives two."""
        ranges = []
        for first, count in zip(self.block_rows.tolist(), np.diff(self.block_offsets).tolist(), strict=True):
            start = (first + self.rotation) % num_rows
            here = min(count, num_rows - start)
            ranges += [(start, here), (0, count - here)] if here < count else [(start, count)]
        return ranges


@dataclasses.dataclass(frozen=True)
class BlockOrder:
    """The order of samples shuffled by blocks; a size below 1 or too many windows raise a ValueError."""

    num_rows: int
    """N, the number of rows of the split, in [1, 2^48]."""
    seed: int
    """Seed of the order, in [0, 2^32)."""
    block_rows: int
    """Rows of a contiguous block."""
    window_blocks: int
    """Blocks whose rows are mixed."""

    def __post_init__(self) -> None:
        for name in ("block_rows", "window_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.shuffle_{name} {getattr(self, name)}: must be at least 1")
        if self.num_rows // (self.block_rows * self.window_blocks) >= 2**32:
            raise ValueError(f"data.shuffle_block_rows {self.block_rows}: too small for {self.num_rows} rows")

    def rows_at(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return the rows at these positions of the training stream, and their epochs."""
        check_positions(positions, self.num_rows)
        rows = np.empty(len(positions), np.int64)
        epochs = positions // self.num_rows
        within = positions - epochs * self.num_rows
        for epoch in np.unique(epochs).tolist():
            here = np.flatnonzero(epochs == epoch)
            windows = _epoch(self, epoch).windows_of(within[here])
            for number in np.unique(windows).tolist():
                places = here[windows == number]
                rows[places] = self._rows_in(_window(self, epoch, number), positions[places])
        return rows, epochs

    def window_at(self, position: int) -> Window:
        """Return the window of a position of the stream."""
        epoch, within = divmod(position, self.num_rows)
        return _window(self, epoch, int(_epoch(self, epoch).windows_of(np.array([within]))[0]))

    def _rows_in(self, window: Window, positions: Int64Array) -> Int64Array:
        offsets = permute((positions - window.first_position).astype(np.uint64), window.keys, window.size)
        offsets = offsets.astype(np.int64)
        blocks = np.searchsorted(window.block_offsets, offsets, side="right") - 1
        rows = window.block_rows[blocks] + (offsets - window.block_offsets[blocks])
        return (rows + window.rotation) % self.num_rows


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """One epoch's blocks. The last block of the split may be shorter; its place in the order is `short_place`."""

    order: BlockOrder
    rotation: int
    num_blocks: int
    short_place: int
    missing_rows: int
    """Rows by which the short block is shorter than the others."""
    keys: UInt64Array

    def windows_of(self, within: Int64Array) -> Int64Array:
        """Return the numbers of the windows of these positions of the epoch."""
        window_rows = self.order.block_rows * self.order.window_blocks
        short_window = self.short_place // self.order.window_blocks
        is_after = within >= (short_window + 1) * window_rows - self.missing_rows
        return (within + is_after * self.missing_rows) // window_rows

    def blocks_at(self, places: Int64Array) -> Int64Array:
        """Return the numbers of the blocks at these places of the order."""
        blocks = np.full(len(places), self.num_blocks - 1)
        is_whole = places != self.short_place
        if is_whole.any():
            # The whole blocks are permuted among themselves, without the short one.
            values = (places - (places > self.short_place))[is_whole]
            blocks[is_whole] = permute(values.astype(np.uint64), self.keys, self.num_blocks - 1)
        return blocks


@functools.lru_cache(maxsize=8)
def _epoch(order: BlockOrder, epoch: int) -> _Epoch:
    num_blocks = -(-order.num_rows // order.block_rows)
    words = random_words(order.seed, Stream.ORDER, 16 * _ROTATION, epoch & 0xFFFFFFFF, epoch >> 32)
    rotation, short_place = (int(words[i]) << 32 | int(words[i + 1]) for i in (0, 2))
    return _Epoch(
        order,
        rotation=rotation % order.num_rows,
        num_blocks=num_blocks,
        short_place=short_place % num_blocks,
        missing_rows=num_blocks * order.block_rows - order.num_rows,
        keys=round_keys(order.seed, epoch, purpose=_BLOCKS),
    )


@functools.lru_cache(maxsize=8)
def _window(order: BlockOrder, epoch: int, number: int) -> Window:
    blocks = _epoch(order, epoch)
    first_place = number * order.window_blocks
    places = np.arange(first_place, min(first_place + order.window_blocks, blocks.num_blocks))
    sizes = np.where(places == blocks.short_place, order.block_rows - blocks.missing_rows, order.block_rows)
    missing_before = blocks.missing_rows if blocks.short_place < first_place else 0
    block_offsets = np.concatenate(([0], np.cumsum(sizes)))
    return Window(
        first_position=epoch * order.num_rows + first_place * order.block_rows - missing_before,
        size=int(block_offsets[-1]),
        rotation=blocks.rotation,
        keys=round_keys(order.seed, epoch, purpose=_ROWS, window=number),
        block_rows=blocks.blocks_at(places) * order.block_rows,
        block_offsets=block_offsets,
    )


class WindowReadAhead:
    """Keeps the system's file cache one window ahead of the positions in use; each process that reads has its own."""

    def __init__(self, rows: ShardedRows, order: BlockOrder) -> None:
        self.rows, self.order = rows, order
        self._requested: set[int] = set()
        """First positions of the windows that were requested last."""

    def advance_to(self, position: int) -> None:
        """Request the windows that are needed next, before rows are read up to this position of the stream."""
        present = self.order.window_at(position)
        following = self.order.window_at(present.first_position + present.size)
        for window in (present, following):
            if window.first_position not in self._requested:
                for first_row, count in window.row_ranges(self.order.num_rows):
                    self.rows.read_ahead(first_row, count)
        self._requested = {present.first_position, following.first_position}


def sample_order(data: DataConfig, num_rows: int, seed: int) -> GlobalOrder | BlockOrder:
    """Return the order of training samples that `data.shuffle` selects, for a split of `num_rows` rows."""
    if data.shuffle == "global":
        return GlobalOrder(num_rows, seed)
    return BlockOrder(num_rows, seed, data.shuffle_block_rows, data.shuffle_window_blocks)
