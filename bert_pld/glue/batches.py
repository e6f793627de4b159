"""The order of examples and their batches: seeded, similar lengths together, the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from bert_pld.glue.data import Encoded

_BATCHES_PER_POOL = 50
"""Rows are sorted by length within random pools of this many batches, which keeps padding low and batches random."""


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
    """Return the model's inputs `[rows, tokens]`, padded to the longest of these rows, and the labels `[rows]`.

    Labels are int64 if they are `classes`, otherwise float32.
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
    if encoded.labels is not None:
        labels = torch.from_numpy(encoded.labels[rows]).to(device, torch.int64 if classes else torch.float32)
    inputs = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    return {name: tensor.to(device) for name, tensor in inputs.items()}, labels
