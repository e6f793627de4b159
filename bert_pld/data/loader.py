"""Masked micro-batches for training and for evaluation, made in worker processes or in this one.

What a micro-batch holds depends on its place in the run alone: on (step, micro-step, rank) through the order of
samples, and on (seed, epoch, row) through the masks. Workers only divide the work. No global random generator is read
or advanced, so an interrupted run that starts again at step k continues as if nothing had happened.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from bert_pld.data.batches import MicroBatch, MicroBatchMaker, PackedMicroBatches
from bert_pld.data.block_order import BlockOrder
from bert_pld.data.groups import EvaluationGroups, MicroBatchGroups, TrainingGroups
from bert_pld.data.masking import MaskingVocabulary
from bert_pld.data.order import GlobalOrder
from bert_pld.data.rows import ShardedRows
from bert_pld.data.workers import guard_worker, naming_dead_workers

MASKING_MODES = ("dynamic", "static")
SHUFFLES = ("global", "blocks")

_PREFETCHED_GROUPS = 4
"""What each worker prepares ahead."""


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
    shuffle: str = "global",
    shuffle_block_rows: int = 4096,
    shuffle_window_blocks: int = 64,
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
        shuffle: `global` or `blocks`, as `sample_order` has it, like the two arguments that follow.
        workers: processes that prepare micro-batches; 0 prepares them in this one.
        pin_memory: put them into page-locked memory.

    Raises:
        ValueError: an argument out of range, or faulty data (at the step that meets it, or a few before).
        ChildProcessError: a worker died.
    """
    _check_sharing(micro_batch_size, rank, world_size, workers)
    if accumulation_steps < 1:
        raise ValueError(f"accumulation_steps {accumulation_steps}: must be at least 1")
    if first_position is None:
        first_position = first_step * micro_batch_size * accumulation_steps * world_size
    groups = TrainingGroups(
        maker=_maker(rows, masking_seed, mask_probability, whole_word, masking),
        count=num_steps * accumulation_steps,
        size=micro_batch_size,
        rank=rank,
        world_size=world_size,
        order=sample_order(shuffle, len(rows), order_seed, shuffle_block_rows, shuffle_window_blocks),
        static=masking == "static",
        accumulation_steps=accumulation_steps,
        first_position=first_position,
    )
    return _steps(_loaded(groups, workers, pin_memory), accumulation_steps)


def sample_order(
    shuffle: str, num_rows: int, seed: int, block_rows: int, window_blocks: int
) -> GlobalOrder | BlockOrder:
    """The order of a split's rows.

    Args:
        shuffle: `global`: any row anywhere in its epoch; `blocks`: rows that lie together are used close together.
        num_rows: of the split.
        seed: in [0, 2^32).
        block_rows: of `blocks`: rows that lie together.
        window_blocks: of `blocks`: blocks whose rows are mixed.

    Raises:
        ValueError: another `shuffle`, or a size below 1.
    """
    if shuffle not in SHUFFLES:
        raise ValueError(f"data.shuffle '{shuffle}': must be one of {', '.join(SHUFFLES)}")
    return GlobalOrder(num_rows, seed) if shuffle == "global" else BlockOrder(num_rows, seed, block_rows, window_blocks)


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
        ChildProcessError: a worker died.
    """
    _check_sharing(batch_size, rank, world_size, workers)
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows {max_rows}: must be at least 1")
    evaluated_rows = len(rows) if max_rows is None else min(max_rows, len(rows))
    groups = EvaluationGroups(
        maker=_maker(rows, masking_seed, mask_probability, whole_word, masking),
        count=-(-evaluated_rows // (batch_size * world_size)),
        size=batch_size,
        rank=rank,
        world_size=world_size,
        evaluated_rows=evaluated_rows,
    )
    return _loaded(groups, workers, pin_memory)


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
    vocabulary = MaskingVocabulary.read(rows.data_dir, rows.manifest, rows.vocabulary_path)
    own_masks = masking == "static" and rows.has_masks
    return MicroBatchMaker(rows, vocabulary, masking_seed, mask_probability, whole_word, own_masks)


def _loaded(groups: MicroBatchGroups, workers: int, pin_memory: bool) -> Iterator[MicroBatch]:
    """All micro-batches in order. Closing the iterator ends the workers."""
    loader = DataLoader(
        groups,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_PREFETCHED_GROUPS if workers else None,
        pin_memory=pin_memory,
        collate_fn=_unchanged,
        worker_init_fn=guard_worker if workers else None,
        generator=torch.Generator(),  # where DataLoader draws its workers' seeds, in place of the global generator
    )
    arriving = iter(loader)
    while True:
        with naming_dead_workers():
            group = next(arriving, None)
        if group is None:
            return
        if isinstance(group, ValueError):
            raise group
        yield from group.unpack() if isinstance(group, PackedMicroBatches) else group


def _unchanged(micro_batch: Any) -> Any:
    return micro_batch


def _steps(micro_batches: Iterator[MicroBatch], accumulation_steps: int) -> Iterator[list[MicroBatch]]:
    while step := list(itertools.islice(micro_batches, accumulation_steps)):
        yield step
