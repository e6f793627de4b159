"""Examples as token ids, and their order: seeded, sequences of like length together, alike on every rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bert_pld.glue.reading import Examples

_BATCHES_A_POOL = 50
"""Of so many batches, drawn at random, the sequences are sorted by length before they are divided."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A split as token ids, unpadded."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]]
    labels: NDArray[np.float64] | None
    truncated: int
    """Examples that fill the longest sequence allowed, or were cut to it."""

    def __len__(self) -> int:
        return len(self.input_ids)


def encode(tokenizer: Any, examples: Examples, max_seq_length: int) -> Encoded:
    """Tokenize; of a pair that is too long the longer sentence is cut first.

    Args:
        tokenizer: a fast one of transformers.
        examples: a split.
        max_seq_length: tokens, special ones included.
    """
    pairs = {} if examples.second is None else {"text_pair": examples.second}
    found = tokenizer(
        examples.first, **pairs, truncation=True, max_length=max_seq_length, return_overflowing_tokens=False
    )
    ids: list[list[int]] = found["input_ids"]
    types = found.get("token_type_ids") or [[0] * len(row) for row in ids]
    labels = None if examples.labels is None else np.asarray(examples.labels)
    return Encoded(ids, types, labels, sum(len(row) == max_seq_length for row in ids))


def training_order(lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """An epoch's batches of row numbers, a function of (seed, epoch) alone.

    Rows are shuffled, sorted by length within pools of 50 batches, and the batches shuffled. The last batch is filled
    up from the epoch's beginning, so that all have the same size and every rank the same share.

    Args:
        lengths: tokens of each row, `[rows]`.
        batch_size: rows of a step, over all ranks.
        seed: of the run; `epoch`: from 0.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    rows = generator.permutation(len(lengths))
    missing = -len(rows) % batch_size
    rows = np.concatenate([rows, np.resize(rows, missing)])
    pool = batch_size * _BATCHES_A_POOL
    rows = np.concatenate(
        [part[np.argsort(lengths[part], kind="stable")] for part in np.split(rows, range(pool, len(rows), pool))]
    )
    batches = rows.reshape(-1, batch_size)
    return list(batches[generator.permutation(len(batches))])


def collate(
    encoded: Encoded, rows: NDArray[np.int64], pad_id: int, device: torch.device, *, classes: bool
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """The model's inputs, padded to the longest of these rows, `[rows, tokens]`, and labels `[rows]`.

    Args:
        classes: labels are class numbers (int64) rather than scores (float32).
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


def evaluation_rows(encoded: Encoded, batch_size: int, rank: int, world_size: int) -> Iterator[NDArray[np.int64]]:
    """This rank's rows in batches, sorted by length; every row belongs to one rank.

    All ranks have equally many batches, of which the last may hold nothing.
    """
    order = np.argsort([len(row) for row in encoded.input_ids], kind="stable")
    for start in range(0, len(order[::world_size]), batch_size):
        yield order[rank::world_size][start : start + batch_size]
