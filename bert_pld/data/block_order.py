"""Shuffling by blocks, for file systems where a random row is dear: rows are read in pieces that lie together.

An epoch turns the split by a random number of rows and cuts it into blocks of `block_rows`, the last of which may be
shorter. The blocks stand in random order, the short one at a random place; `window_blocks` of them make a window, and
rows are in random order within their window. So a window's samples come from `window_blocks` contiguous pieces of the
shards, which can be read ahead in large requests, and the cache need hold two windows.

As in the global order, everything is a function of (seed, epoch, position): each place is computed at once, without a
table of rows. The turn makes the blocks' bounds, and what they join, other ones each epoch; it also gives each row the
same chance of each position, whether or not the sizes divide.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from bert_pld.config import DataConfig
from bert_pld.data.order import GlobalOrder, Int64Array, UInt64Array, check_positions, permute, round_keys
from bert_pld.data.rows import ShardedRows
from bert_pld.rng import Stream, random_words

_BLOCKS, _ROWS, _TURN = 1, 2, 3
"""What keys are for; the global order's have 0."""


@dataclasses.dataclass(frozen=True)
class Window:
    """The samples of some successive positions of the stream, all from a few contiguous pieces of the split."""

    first_position: int
    size: int
    """Positions, that is rows."""
    turn: int
    keys: UInt64Array
    block_rows: Int64Array
    """`[blocks]` first row of each block, before the turn."""
    block_offsets: Int64Array
    """`[blocks + 1]` where in the window, before its rows are permuted, each block begins; the last entry is `size`."""

    def row_ranges(self, num_rows: int) -> list[tuple[int, int]]:
        """The pieces as (first row, rows); a block across the split's end is two."""
        ranges = []
        for first, count in zip(self.block_rows.tolist(), np.diff(self.block_offsets).tolist(), strict=True):
            start = (first + self.turn) % num_rows
            here = min(count, num_rows - start)
            ranges += [(start, here), (0, count - here)] if here < count else [(start, count)]
        return ranges


@dataclasses.dataclass(frozen=True)
class BlockOrder:
    """The order of samples shuffled by blocks.

    Raises:
        ValueError: a size below 1, or so many windows that their numbers overflow.
    """

    num_rows: int
    """N, rows of the split, in [1, 2^48]."""
    seed: int
    """In [0, 2^32)."""
    block_rows: int
    """Rows that lie together."""
    window_blocks: int
    """Blocks whose rows are mixed."""

    def __post_init__(self) -> None:
        for name in ("block_rows", "window_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.shuffle_{name} {getattr(self, name)}: must be at least 1")
        if self.num_rows // (self.block_rows * self.window_blocks) >= 2**32:
            raise ValueError(f"data.shuffle_block_rows {self.block_rows}: too small for {self.num_rows} rows")

    def rows_at(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The rows that stand at these positions of the training stream, and their epochs; as `order.rows_at`."""
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
        """The window that a position of the stream lies in."""
        epoch, within = divmod(position, self.num_rows)
        return _window(self, epoch, int(_epoch(self, epoch).windows_of(np.array([within]))[0]))

    def _rows_in(self, window: Window, positions: Int64Array) -> Int64Array:
        offsets = permute((positions - window.first_position).astype(np.uint64), window.keys, window.size)
        offsets = offsets.astype(np.int64)
        blocks = np.searchsorted(window.block_offsets, offsets, side="right") - 1
        rows = window.block_rows[blocks] + (offsets - window.block_offsets[blocks])
        return (rows + window.turn) % self.num_rows


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """One epoch's blocks: K of them, of which the last of the split, at place `short_place`, may be short."""

    order: BlockOrder
    turn: int
    num_blocks: int
    short_place: int
    missing_rows: int
    """What the short block lacks of a whole one."""
    keys: UInt64Array

    def windows_of(self, within: Int64Array) -> Int64Array:
        """The numbers of the windows that these positions of the epoch lie in."""
        window_rows = self.order.block_rows * self.order.window_blocks
        short_window = self.short_place // self.order.window_blocks
        after_it = within >= (short_window + 1) * window_rows - self.missing_rows
        return (within + after_it * self.missing_rows) // window_rows

    def blocks_at(self, places: Int64Array) -> Int64Array:
        """The numbers of the blocks that stand at these places."""
        blocks = np.full(len(places), self.num_blocks - 1)
        whole = places != self.short_place
        if whole.any():
            values = (places - (places > self.short_place))[whole]
            blocks[whole] = permute(values.astype(np.uint64), self.keys, self.num_blocks - 1)
        return blocks


@functools.lru_cache(maxsize=8)
def _epoch(order: BlockOrder, epoch: int) -> _Epoch:
    num_blocks = -(-order.num_rows // order.block_rows)
    words = random_words(order.seed, Stream.ORDER, 16 * _TURN, epoch & 0xFFFFFFFF, epoch >> 32)
    turn, short_place = (int(words[i]) << 32 | int(words[i + 1]) for i in (0, 2))
    return _Epoch(
        order,
        turn=turn % order.num_rows,
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
        turn=blocks.turn,
        keys=round_keys(order.seed, epoch, purpose=_ROWS, window=number),
        block_rows=blocks.blocks_at(places) * order.block_rows,
        block_offsets=block_offsets,
    )


class WindowReadAhead:
    """Keeps the system's cache one window ahead of the positions in use; one to a process that reads."""

    def __init__(self, rows: ShardedRows, order: BlockOrder) -> None:
        self.rows, self.order = rows, order
        self._asked: set[int] = set()

    def advance_to(self, position: int) -> None:
        """Rows are about to be read up to this position of the stream.

        Raises:
            ValueError: a shard that contradicts the manifest.
        """
        present = self.order.window_at(position)
        following = self.order.window_at(present.first_position + present.size)
        for window in (present, following):
            if window.first_position not in self._asked:
                self._ask_for(window)
        self._asked = {present.first_position, following.first_position}

    def _ask_for(self, window: Window) -> None:
        for first_row, count in window.row_ranges(self.order.num_rows):
            self.rows.read_ahead(first_row, count)


def sample_order(data: DataConfig, num_rows: int, seed: int) -> GlobalOrder | BlockOrder:
    """Return the order of training samples that `data.shuffle` selects, for a split of `num_rows` rows."""
    if data.shuffle == "global":
        return GlobalOrder(num_rows, seed)
    return BlockOrder(num_rows, seed, data.shuffle_block_rows, data.shuffle_window_blocks)
