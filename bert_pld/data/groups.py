"""What a run's loader is asked for: groups of micro-batches by number, for training and for evaluation."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from torch.utils.data import Dataset

from bert_pld.data.batches import Int64Array, MicroBatchMaker, PackedMicroBatches
from bert_pld.data.block_order import BlockOrder
from bert_pld.data.order import GlobalOrder, positions_of_micro_batch
from bert_pld.data.read_ahead import WindowReadAhead

_GROUP_TOKENS = 32_768
"""Micro-batches are prepared and sent in groups of about this many tokens: small ones cost mostly calls."""


@dataclasses.dataclass(frozen=True)
class MicroBatchGroups(Dataset):
    """A run's micro-batches in groups, by ordinal number of the group.

    A ValueError is returned: raised, it would gain a worker's traceback.
    """

    maker: MicroBatchMaker
    count: int
    """Micro-batches in all."""
    size: int
    """Rows a micro-batch."""
    rank: int
    world_size: int

    @property
    def group_size(self) -> int:
        """Micro-batches a group; the last group may have fewer."""
        return max(1, _GROUP_TOKENS // (self.size * self.maker.rows.attributes.seq_length))

    def __len__(self) -> int:
        return -(-self.count // self.group_size)

    def __getitem__(self, group: int) -> PackedMicroBatches | ValueError:
        first = group * self.group_size
        ordinals = np.arange(first, min(first + self.group_size, self.count))
        try:
            return self.maker.make(*self.rows_of(ordinals))
        except ValueError as error:
            return error

    def rows_of(self, ordinals: Int64Array) -> tuple[Int64Array, Int64Array, list[int]]:
        """Of micro-batches: row indices, their epochs, and how many rows of each micro-batch are real."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TrainingGroups(MicroBatchGroups):
    """One rank's micro-batches of training, in the order of the stream."""

    order: GlobalOrder | BlockOrder
    static: bool
    accumulation_steps: int
    first_position: int

    @functools.cached_property
    def _window_read_ahead(self) -> WindowReadAhead | None:
        return WindowReadAhead(self.maker.rows, self.order) if isinstance(self.order, BlockOrder) else None

    def rows_of(self, ordinals: Int64Array) -> tuple[Int64Array, Int64Array, list[int]]:
        """All rows are real."""
        places = (divmod(ordinal, self.accumulation_steps) for ordinal in ordinals.tolist())
        positions = np.concatenate(
            [
                positions_of_micro_batch(
                    step, micro_step, self.rank, self.size, self.accumulation_steps, self.world_size
                )
                for step, micro_step in places
            ]
        )
        positions += self.first_position
        if self._window_read_ahead is not None:
            self._window_read_ahead.reached(int(positions[-1]))
        row_indices, epochs = self.order.rows_at(positions)
        return row_indices, np.zeros_like(epochs) if self.static else epochs, [self.size] * len(ordinals)


@dataclasses.dataclass(frozen=True)
class EvaluationGroups(MicroBatchGroups):
    """One rank's micro-batches of a split that is gone through once."""

    evaluated_rows: int

    def rows_of(self, ordinals: Int64Array) -> tuple[Int64Array, Int64Array, list[int]]:
        """Where the rows run out, row 0 fills up."""
        starts = (ordinals * self.world_size + self.rank) * self.size
        places = (starts[:, None] + np.arange(self.size)).reshape(-1)
        places[places >= self.evaluated_rows] = 0
        # Fewer rows than there are: take them evenly from the whole split, which may be ordered by source.
        row_indices = places * len(self.maker.rows) // self.evaluated_rows
        real_rows = np.clip(self.evaluated_rows - starts, 0, self.size)
        return row_indices, np.zeros_like(row_indices), real_rows.tolist()
