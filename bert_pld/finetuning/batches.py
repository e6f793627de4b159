"""A task's splits as token ids, and batches of them.

Batches are seeded, have similar lengths together, and are the same on every rank.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from bert_pld.finetuning.task import Task

IGNORED_LABEL = -100
"""Label that the loss ignores (`ignore_index` of torch's cross entropy)."""
_BATCHES_PER_POOL = 50
"""Rows are sorted by length within random pools of this many batches, which keeps padding low and batches random."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The rows of a split, as token ids without padding."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]]
    labels: NDArray[np.float64] | None
    """`[rows]`; or `[words]`, those of all rows one after the other."""
    truncated: int
    """Number of examples that fill the maximum length; most of them were cut to it."""
    word_places: list[NDArray[np.int64]] | None = None
    """For each row, the places of its words' first tokens; None: a label belongs to a row."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @functools.cached_property
    def label_starts(self) -> NDArray[np.int64]:
        """`[rows + 1]`: where each row's labels start."""
        counts = [1] * len(self) if self.word_places is None else [len(places) for places in self.word_places]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


@dataclasses.dataclass(frozen=True)
class TaskData:
    """All splits of a task."""

    task: Task
    train: Encoded
    dev: dict[str, Encoded]
    """Split → examples."""
    test: dict[str, Encoded]
    """The leaderboard's file → examples, for the test files that exist."""
    left_out: dict[str, int]
    """Split → number of rows without a sentence or a label."""

    def describe(self) -> str:
        """Return the sizes of the splits in one line."""
        parts = [f"train {len(self.train):,}", *(f"{name} {len(split):,}" for name, split in self.dev.items())]
        parts += [f"{name} {len(split):,}" for name, split in self.test.items()]
        lost = sum(self.left_out.values())
        cut = self.train.truncated + sum(split.truncated for split in self.dev.values())
        parts += [f"{lost:,} rows without a sentence or a label left out"] if lost else []
        parts += [f"{cut:,} examples of train and dev reach the maximum length or were cut to it"] if cut else []
        return ", ".join(parts)


def training_order(lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Return an epoch's batches of row numbers, a function of (seed, epoch) alone.

    Rows are shuffled and sorted by length within pools of 50 batches; then the batches are shuffled. The last batch is
    filled up with rows from the beginning of the epoch, so that all batches and all ranks' shares have the same size.
    `lengths` has the number of tokens of each row; `batch_size` is over all ranks.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    rows = generator.permutation(len(lengths))
    missing = -len(rows) % batch_size
    rows = np.concatenate([rows, np.resize(rows, missing)])
    pool = batch_size * _BATCHES_PER_POOL
    rows = np.concatenate(
        [part[np.argsort(lengths[part], kind="stable")] for part in np.split(rows, range(pool, len(rows), pool))]
    )
    batches = rows.reshape(-1, batch_size)
    return list(batches[generator.permutation(len(batches))])


def evaluation_rows(encoded: Encoded, batch_size: int, rank: int, world_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield this rank's batches of row numbers, sorted by length; every row belongs to exactly one rank.

    All ranks have the same number of batches; a rank's last batch may be empty.
    """
    order = np.argsort([len(row) for row in encoded.input_ids], kind="stable")
    for start in range(0, len(order[::world_size]), batch_size):
        yield order[rank::world_size][start : start + batch_size]


def collate(
    encoded: Encoded, rows: NDArray[np.int64], pad_id: int, device: torch.device, *, classes: bool
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Return the model's inputs `[rows, tokens]`, padded to the longest of these rows, and the labels.

    Labels are `[rows]`, int64 if they are `classes`, otherwise float32. Those of words are int64 `[rows, tokens]`: the
    label at a word's first token, and -100 elsewhere.
    """
    longest = max(len(encoded.input_ids[row]) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for target, row in enumerate(rows):
        length = len(encoded.input_ids[row])
        ids[target, :length] = torch.tensor(encoded.input_ids[row])
        types[target, :length] = torch.tensor(encoded.token_type_ids[row])
        mask[target, :length] = 1
    labels = None
    if encoded.labels is not None and encoded.word_places is not None:
        starts, labels = encoded.label_starts, torch.full_like(ids, IGNORED_LABEL)
        for target, row in enumerate(rows):
            labels_of_row = torch.from_numpy(encoded.labels[starts[row] : starts[row + 1]]).long()
            labels[target, torch.from_numpy(encoded.word_places[row])] = labels_of_row
        labels = labels.to(device)
    elif encoded.labels is not None:
        labels = torch.from_numpy(encoded.labels[rows]).to(device, torch.int64 if classes else torch.float32)
    inputs = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    return {name: tensor.to(device) for name, tensor in inputs.items()}, labels
