"""Masked micro-batches for training and for evaluation, made in worker processes or in this one.

The content of a micro-batch depends on its place in the run alone: on (step, micro-step, rank) through the order of
samples, and on (seed, epoch, row) through the masks. Workers only divide the work. No global random generator is read
or advanced, so a run that is resumed at step k continues as if it had not been interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bert_pld.config import DataConfig, ModelConfig
from bert_pld.data.batches import Int64Array, MicroBatch, MicroBatchMaker, PackedMicroBatches
from bert_pld.data.block_order import BlockOrder, WindowReadAhead, sample_order
from bert_pld.data.masking import Float64Array, MaskingVocabulary
from bert_pld.data.order import BatchShare, GlobalOrder
from bert_pld.data.read_failures import guard_worker, naming_dead_workers
from bert_pld.data.rows import ShardedRows

_GROUP_TOKENS = 32_768
"""Micro-batches are prepared and sent in groups of about this many tokens; the cost of a call is then small."""
_PREFETCHED_GROUPS = 4
"""Groups that each worker prepares in advance."""


def training_batches(
    rows: ShardedRows,
    data: DataConfig,
    share: BatchShare,
    *,
    seed: int,
    num_steps: int,
    first_sample: int = 0,
    first_step: int = 0,
    pin_memory: bool = False,
) -> Iterator[list[MicroBatch]]:
    """Yield this rank's micro-batches of `num_steps` steps, a list for each step.

    `seed`, in [0, 2^32), is that of the order and of the masks. The first step has the number `first_step`, by which
    the share of masked tokens may change, and earlier steps have consumed `first_sample` samples, over all ranks.
    Faulty data raises a ValueError at the step that reads it or a few before. A worker that died raises a
    ChildProcessError.
    """
    groups = TrainingGroups(
        maker=_micro_batch_maker(rows, data, seed),
        share=share,
        count=num_steps * share.accumulation_steps,
        order=sample_order(data, len(rows), seed),
        first_sample=first_sample,
        first_step=first_step,
    )
    return _steps(_load(groups, data.workers, pin_memory), share.accumulation_steps)


def evaluation_batches(
    rows: ShardedRows,
    data: DataConfig,
    share: BatchShare,
    *,
    seed: int,
    max_rows: int | None = None,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[MicroBatch]:
    """Yield this rank's share of a split, each row once over all ranks, always with the same masks.

    The masks are those of epoch 0, or with `static` masking those that the shards contain, if any.

    Every rank yields the same number of micro-batches of the same shape. When the rows run out, a micro-batch is filled
    up with a row that has no targets; its `rows` counts the real ones and may be 0.

    At most `max_rows` rows are evaluated, spread evenly over the split. `data.workers` and `share.accumulation_steps`
    have no effect; with `workers` 0 this process prepares the micro-batches. Errors are those of `training_batches`.
    """
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows {max_rows}: must be at least 1")
    evaluated_rows = len(rows) if max_rows is None else min(max_rows, len(rows))
    groups = EvaluationGroups(
        maker=_micro_batch_maker(rows, data, seed),
        share=share,
        count=-(-evaluated_rows // (share.micro_batch_size * share.world_size)),
        evaluated_rows=evaluated_rows,
    )
    return _load(groups, workers, pin_memory)


@dataclasses.dataclass(frozen=True)
class MicroBatchGroups(Dataset):
    """One rank's micro-batches in groups, by the number of the group.

    A ValueError is returned, not raised: raised in a worker, it would arrive with the worker's traceback in its text.
    """

    maker: MicroBatchMaker
    share: BatchShare
    count: int
    """Number of micro-batches."""

    @property
    def group_size(self) -> int:
        """Micro-batches in a group; the last group may have fewer."""
        return max(1, _GROUP_TOKENS // (self.share.micro_batch_size * self.maker.rows.attributes.seq_length))

    def __len__(self) -> int:
        return -(-self.count // self.group_size)

    def __getitem__(self, group: int) -> PackedMicroBatches | ValueError:
        first = group * self.group_size
        numbers = np.arange(first, min(first + self.group_size, self.count))
        try:
            return self.maker.make(*self.rows_of(numbers), self.mask_probability_of(numbers))
        except ValueError as error:
            return error

    def rows_of(self, numbers: Int64Array) -> tuple[Int64Array, Int64Array, list[int]]:
        """Return the row indices of these micro-batches, the rows' epochs, and the real rows of each micro-batch."""
        raise NotImplementedError

    def mask_probability_of(self, numbers: Int64Array) -> float | Float64Array:
        """Return the share of tokens to mask in these micro-batches, one number or one for each row."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TrainingGroups(MicroBatchGroups):
    """One rank's micro-batches of training, in the order of the stream."""

    order: GlobalOrder | BlockOrder
    first_sample: int
    first_step: int

    @functools.cached_property
    def _window_read_ahead(self) -> WindowReadAhead | None:
        return WindowReadAhead(self.maker.rows, self.order) if isinstance(self.order, BlockOrder) else None

    def rows_of(self, numbers: Int64Array) -> tuple[Int64Array, Int64Array, list[int]]:
        """Return rows of the stream, all of them real."""
        places = (divmod(number, self.share.accumulation_steps) for number in numbers.tolist())
        positions = np.concatenate([self.share.positions(step, micro_step) for step, micro_step in places])
        positions += self.first_sample
        if self._window_read_ahead is not None:
            self._window_read_ahead.advance_to(int(positions[-1]))
        return *self.order.rows_at(positions), [self.share.micro_batch_size] * len(numbers)

    def mask_probability_of(self, numbers: Int64Array) -> float | Float64Array:
        """Return the share of each row's step, which is the same on all ranks."""
        data = self.maker.data
        if isinstance(data.mask_probability, float):
            return data.mask_probability
        steps = (self.first_step + numbers // self.share.accumulation_steps).tolist()
        return np.repeat([data.mask_probability_at(step) for step in steps], self.share.micro_batch_size)


@dataclasses.dataclass(frozen=True)
class EvaluationGroups(MicroBatchGroups):
    """One rank's micro-batches of a split that is read once."""

    evaluated_rows: int

    def rows_of(self, numbers: Int64Array) -> tuple[Int64Array, Int64Array, list[int]]:
        """Return rows of the split, spread evenly; row 0 fills up the last micro-batch."""
        size = self.share.micro_batch_size
        starts = (numbers * self.share.world_size + self.share.rank) * size
        places = (starts[:, None] + np.arange(size)).reshape(-1)
        places[places >= self.evaluated_rows] = 0
        # If only some rows are evaluated, they are spread over the whole split, which may be ordered by source.
        row_indices = places * len(self.maker.rows) // self.evaluated_rows
        real_rows = np.clip(self.evaluated_rows - starts, 0, size)
        return row_indices, np.zeros_like(row_indices), real_rows.tolist()

    def mask_probability_of(self, numbers: Int64Array) -> float:
        """Return the share of evaluations."""
        return self.maker.data.evaluated_mask_probability


def check_matches_model(rows: ShardedRows, model: ModelConfig, seq_length: int) -> None:
    """Raise a ValueError if the model or the run, with `data.seq_length`, does not fit the shards.

    `model.vocab_size` must be set; the shards may have fewer entries, because the embedding is padded.
    """
    found, where = rows.attributes, f"data directory {rows.data_dir} ({rows.described_in})"
    if found.vocabulary_size > (model.vocab_size or 0):
        raise ValueError(
            f"{where}: vocabulary of {found.vocabulary_size} entries; the model has {model.vocab_size}"
            " (model.vocab_size)"
        )
    if found.seq_length > model.max_position_embeddings:
        raise ValueError(
            f"{where}: sequences of {found.seq_length} tokens; the model allows at most"
            f" {model.max_position_embeddings} (model.max_position_embeddings)"
        )
    if found.seq_length != seq_length:
        raise ValueError(
            f"{where}: sequences of {found.seq_length} tokens; the run is configured for {seq_length} (data.seq_length)"
        )


def _micro_batch_maker(rows: ShardedRows, data: DataConfig, seed: int) -> MicroBatchMaker:
    vocabulary = MaskingVocabulary.read(rows.data_dir, rows.manifest, rows.vocabulary_path)
    return MicroBatchMaker(rows, vocabulary, data, seed)


def _load(groups: MicroBatchGroups, workers: int, pin_memory: bool) -> Iterator[MicroBatch]:
    """Yield all micro-batches in order. Closing the iterator ends the workers."""
    loader = DataLoader(
        groups,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_PREFETCHED_GROUPS if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=guard_worker if workers else None,
        # DataLoader draws its workers' seeds from this generator instead of the global one.
        generator=torch.Generator(),
    )
    groups_in_order = iter(loader)
    while True:
        with naming_dead_workers():
            group = next(groups_in_order, None)
        if group is None:
            return
        if isinstance(group, ValueError):
            raise group
        # With `pin_memory`, the DataLoader has unpacked the group already (`PackedMicroBatches.pin_memory`).
        yield from group.unpack() if isinstance(group, PackedMicroBatches) else group


def _steps(micro_batches: Iterator[MicroBatch], accumulation_steps: int) -> Iterator[list[MicroBatch]]:
    while step := list(itertools.islice(micro_batches, accumulation_steps)):
        yield step
