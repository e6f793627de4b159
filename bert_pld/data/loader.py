"""Masked micro-batches for training and for evaluation, made in worker processes or in this one.

What a micro-batch holds depends on its place in the run alone: on (step, micro-step, rank) through the order of
samples, and on (seed, epoch, row) through the masks. Workers only divide the work. No global random generator is read
or advanced, so an interrupted run that starts again at step k continues as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bert_pld.data.masking import Vocabulary
from bert_pld.data.micro_batch import Int64Array, MicroBatch, MicroBatchMaker
from bert_pld.data.order import positions_of_micro_batch, rows_at
from bert_pld.data.shards import ShardedRows

MASKING_MODES = ("dynamic", "static")

_PREFETCHED_MICRO_BATCHES = 4
"""What each worker prepares ahead."""
_PARENT_CHECK_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class _MicroBatches(Dataset):
    """A run's micro-batches by ordinal number. A ValueError is returned: raised, it would gain a worker's traceback."""

    maker: MicroBatchMaker
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, ordinal: int) -> MicroBatch | ValueError:
        try:
            return self.maker.make(*self.rows_of(ordinal))
        except ValueError as error:
            return error

    def rows_of(self, ordinal: int) -> tuple[Int64Array, Int64Array, int]:
        """Row indices, their epochs, and how many of them are real."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _TrainingMicroBatches(_MicroBatches):
    order_seed: int
    static: bool
    micro_batch_size: int
    accumulation_steps: int
    rank: int
    world_size: int
    first_position: int

    def rows_of(self, ordinal: int) -> tuple[Int64Array, Int64Array, int]:
        step, micro_step = divmod(ordinal, self.accumulation_steps)
        positions = self.first_position + positions_of_micro_batch(
            step, micro_step, self.rank, self.micro_batch_size, self.accumulation_steps, self.world_size
        )
        row_indices, epochs = rows_at(positions, len(self.maker.rows), self.order_seed)
        return row_indices, np.zeros_like(epochs) if self.static else epochs, len(row_indices)


@dataclasses.dataclass(frozen=True)
class _EvaluationMicroBatches(_MicroBatches):
    batch_size: int
    rank: int
    world_size: int
    evaluated_rows: int

    def rows_of(self, ordinal: int) -> tuple[Int64Array, Int64Array, int]:
        start = (ordinal * self.world_size + self.rank) * self.batch_size
        places = np.arange(start, start + self.batch_size, dtype=np.int64)
        real_rows = int(np.clip(self.evaluated_rows - start, 0, self.batch_size))
        places[real_rows:] = 0
        # Fewer rows than there are: take them evenly from the whole split, which may be ordered by source.
        row_indices = places * len(self.maker.rows) // self.evaluated_rows
        return row_indices, np.zeros_like(row_indices), real_rows


def training_batches(
    rows: ShardedRows,
    *,
    order_seed: int,
    masking_seed: int,
    micro_batch_size: int,
    accumulation_steps: int,
    rank: int,
    world_size: int,
    first_step: int,
    num_steps: int,
    first_position: int | None = None,
    mask_probability: float = 0.15,
    whole_word: bool = False,
    masking: str = "dynamic",
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[list[MicroBatch]]:
    """This rank's micro-batches of steps `first_step` to `first_step + num_steps - 1`, a list a step.

    Args:
        rows: the training split.
        order_seed: of the order of samples, in [0, 2^32).
        masking_seed: of the masks, in [0, 2^32).
        micro_batch_size: rows a micro-batch on one rank.
        accumulation_steps: micro-batches a step on one rank.
        rank: in [0, world_size).
        world_size: data-parallel ranks.
        first_step: 0, or the number of steps already done.
        num_steps: how many steps to yield.
        first_position: samples consumed before `first_step`; by default `first_step` global batches. To be given where
            earlier steps had another global batch size.
        mask_probability: share of the candidates to mask, in (0, 1).
        whole_word: mask whole words.
        masking: `dynamic`, new masks each epoch; `static`, the same ones: those that the rows bring along, where they
            do, else those of epoch 0.
        workers: processes that prepare micro-batches; 0 prepares them in this one.
        pin_memory: put them into page-locked memory.

    Raises:
        ValueError: an argument out of range, or faulty data (at the step that meets it).
        RuntimeError: a worker died.
    """
    _check_sharing(micro_batch_size, rank, world_size, workers)
    if accumulation_steps < 1:
        raise ValueError(f"accumulation_steps {accumulation_steps}: must be at least 1")
    if first_position is None:
        first_position = first_step * micro_batch_size * accumulation_steps * world_size
    micro_batches = _TrainingMicroBatches(
        maker=_maker(rows, masking_seed, mask_probability, whole_word, masking),
        count=num_steps * accumulation_steps,
        order_seed=order_seed,
        static=masking == "static",
        micro_batch_size=micro_batch_size,
        accumulation_steps=accumulation_steps,
        rank=rank,
        world_size=world_size,
        first_position=first_position,
    )
    return _steps(_loaded(micro_batches, workers, pin_memory), accumulation_steps)


def evaluation_batches(
    rows: ShardedRows,
    *,
    masking_seed: int,
    batch_size: int,
    rank: int,
    world_size: int,
    max_rows: int | None = None,
    mask_probability: float = 0.15,
    whole_word: bool = False,
    masking: str = "dynamic",
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[MicroBatch]:
    """This rank's share of a split, each row exactly once over all ranks, always with the same masks.

    They are those of epoch 0, or with `static` masking those that the rows bring along, where they do.

    Every rank yields the same number of batches of the same shape. Where the rows run out, a batch is filled up with a
    row that has no targets; `rows` counts the real ones and may be 0.

    Args:
        rows: the split, e.g. `validation`.
        masking_seed: of the masks, in [0, 2^32).
        batch_size: rows a batch on one rank.
        rank: in [0, world_size).
        world_size: data-parallel ranks.
        max_rows: evaluate no more than this many rows, spread evenly over the split.
        mask_probability: as in `training_batches`, like the arguments that follow.

    Raises:
        ValueError: an argument out of range, or faulty data.
        RuntimeError: a worker died.
    """
    _check_sharing(batch_size, rank, world_size, workers)
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows {max_rows}: must be at least 1")
    evaluated_rows = len(rows) if max_rows is None else min(max_rows, len(rows))
    micro_batches = _EvaluationMicroBatches(
        maker=_maker(rows, masking_seed, mask_probability, whole_word, masking),
        count=-(-evaluated_rows // (batch_size * world_size)),
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        evaluated_rows=evaluated_rows,
    )
    return _loaded(micro_batches, workers, pin_memory)


def check_matches_model(rows: ShardedRows, *, vocabulary_size: int, max_positions: int, seq_length: int) -> None:
    """Refuse shards that the model cannot read.

    Args:
        rows: any split of the data directory.
        vocabulary_size: entries of the model's embedding, padding included; the shards may have fewer.
        max_positions: the model's longest sequence.
        seq_length: the sequence length that the run is configured for (`data.seq_length`).

    Raises:
        ValueError: the shards' vocabulary or sequence length does not fit.
    """
    found, where = rows.attributes, f"data directory {rows.data_dir} ({rows.described_in})"
    if found.vocabulary_size > vocabulary_size:
        raise ValueError(
            f"{where}: vocabulary of {found.vocabulary_size} entries; the model has {vocabulary_size}"
            " (model.vocab_size)"
        )
    if found.seq_length > max_positions:
        raise ValueError(
            f"{where}: sequences of {found.seq_length} tokens; the model allows at most {max_positions}"
            " (model.max_position_embeddings)"
        )
    if found.seq_length != seq_length:
        raise ValueError(
            f"{where}: sequences of {found.seq_length} tokens; the run is configured for {seq_length} (data.seq_length)"
        )


def _check_sharing(micro_batch_size: int, rank: int, world_size: int, workers: int) -> None:
    if micro_batch_size < 1:
        raise ValueError(f"micro-batch size {micro_batch_size}: must be at least 1")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank}: must be in [0, {world_size}), the world size")
    if workers < 0:
        raise ValueError(f"data-loading workers {workers}: must not be negative")


def _maker(
    rows: ShardedRows, masking_seed: int, mask_probability: float, whole_word: bool, masking: str
) -> MicroBatchMaker:
    if masking not in MASKING_MODES:
        raise ValueError(f"data.masking '{masking}': must be one of {', '.join(MASKING_MODES)}")
    if not 0 < mask_probability < 1:
        raise ValueError(f"data.mask_probability {mask_probability}: must be in (0, 1)")
    vocabulary = Vocabulary.read(rows.data_dir, rows.manifest, rows.vocabulary_path)
    own_masks = masking == "static" and rows.has_masks
    return MicroBatchMaker(rows, vocabulary, masking_seed, mask_probability, whole_word, own_masks)


def _loaded(micro_batches: _MicroBatches, workers: int, pin_memory: bool) -> Iterator[MicroBatch]:
    """All micro-batches in order. Closing the iterator ends the workers."""
    loader = DataLoader(
        micro_batches,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_PREFETCHED_MICRO_BATCHES if workers else None,
        pin_memory=pin_memory,
        collate_fn=_unchanged,
        worker_init_fn=_guard_worker if workers else None,
        generator=torch.Generator(),  # where DataLoader draws its workers' seeds, in place of the global generator
    )
    for micro_batch in loader:
        if isinstance(micro_batch, ValueError):
            raise micro_batch
        yield micro_batch


def _guard_worker(_worker: int) -> None:
    """Keep a worker at work through the signals that a scheduler sends to every process of a job.

    The training process answers SIGTERM and SIGUSR1 with one more whole step and a checkpoint, and needs its workers
    for that. They obey the SIGTERM of that process alone, and end when it is gone.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this worker when its parent says so or has ended, even while the main thread waits to write into a pipe."""
    parent, started_by = multiprocessing.parent_process(), os.getppid()
    assert parent is not None
    while os.getppid() == started_by and parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, _PARENT_CHECK_SECONDS)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)


def _unchanged(micro_batch: Any) -> Any:
    return micro_batch


def _steps(micro_batches: Iterator[MicroBatch], accumulation_steps: int) -> Iterator[list[MicroBatch]]:
    while step := list(itertools.islice(micro_batches, accumulation_steps)):
        yield step
