"""Reading ahead in the block-wise order: a window's pieces are asked for while the one before is used."""

from __future__ import annotations

from bert_pld.data.block_order import BlockOrder, Window
from bert_pld.data.rows import ShardedRows


class WindowReadAhead:
    """Keeps the system's cache one window ahead of the positions in use; one to a process that reads."""

    def __init__(self, rows: ShardedRows, order: BlockOrder) -> None:
        self.rows, self.order = rows, order
        self._asked: set[int] = set()

    def reached(self, position: int) -> None:
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
