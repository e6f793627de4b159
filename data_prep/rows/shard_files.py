"""Shard files, in the native format and in NVIDIA's format with static masks.

A native shard holds the rows of one group. In NVIDIA's format every row is written several times with different masks:
duplicate k has the masks that dynamic masking draws in epoch k with the build's seed. The masks depend on the row's
index in its split, which is known only after all groups are written. Masking is therefore a stage of its own, with one
task for each native shard. The rows of duplicate 0 come first, in native order, then those of duplicate 1, and so on.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bert_pld.data.masking import MaskingVocabulary, mask_tokens
from bert_pld.data.nvidia_format import encode, shard_name, write_nvidia_shard
from bert_pld.data.shards import Rows, Shard, ShardAttributes, ShardRecord, write_shard
from bert_pld.data.shards import shard_name as native_shard_name
from bert_pld.files import write_atomically
from data_prep.rows.splitting import Group

DEFAULT_DUPE_FACTOR = 5
_PARTS_NAME = "masking.json"
_BLOCK_ROWS = 1 << 12


def write_group(
    folder: Path, group: Group, rows: Rows, attributes: ShardAttributes, shard_rows: int
) -> list[dict[str, Any]]:
    """Write the rows of a group as native shards of at most `shard_rows` rows.

    Returns:
        The records of the shards, in order, as dictionaries.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    count = len(rows["length"])
    records = []
    for part, first in enumerate(range(0, count, shard_rows)):
        path = folder / f"{group.split}_{group.number:05d}_{part:03d}.hdf5"
        piece = {name: column[first : first + shard_rows] for name, column in rows.items()}
        records.append(dataclasses.asdict(write_shard(path, piece, attributes)))
    return records


def place_shards(
    folder: Path, output_dir: Path, records_of_groups: list[tuple[Group, list[dict[str, Any]]]]
) -> dict[str, list[ShardRecord]]:
    """Move all native shards to their final names; shards that were moved before an interruption are skipped.

    Returns:
        The records of each split, with the final names.
    """
    splits: dict[str, list[ShardRecord]] = {}
    for group, records in records_of_groups:
        placed = splits.setdefault(group.split, [])
        for content in records:
            record = ShardRecord(**content)
            name = native_shard_name(group.split, len(placed))
            if (folder / record.file).is_file():
                os.replace(folder / record.file, output_dir / name)
            placed.append(dataclasses.replace(record, file=name))
    return splits


@dataclasses.dataclass(frozen=True)
class MaskingPart:
    """The work of one masking task: a native shard, and the index of its first row in its split."""

    seq_length: int
    split: str
    file: str
    first_row: int
    rows: int

    def dupe_factor(self, requested: int) -> int:
        """Return the number of sets of masks: the requested number in training, one in validation."""
        return requested if self.split == "train" else 1


def masking_parts(seq_length: int, records_of_groups: list[tuple[Group, list[dict[str, Any]]]]) -> list[MaskingPart]:
    """Return the tasks for the native shards of a sequence length, given the groups and the records of their shards."""
    parts, rows_before = [], {"train": 0, "validation": 0}
    for group, records in records_of_groups:
        for record in records:
            first = rows_before[group.split]
            parts.append(MaskingPart(seq_length, group.split, record["file"], first, record["rows"]))
            rows_before[group.split] += record["rows"]
    return parts


def write_parts(build_dir: Path, parts: list[MaskingPart]) -> None:
    """Write the list of masking tasks for the processes that run them."""
    write_atomically(build_dir / _PARTS_NAME, json.dumps([dataclasses.asdict(part) for part in parts]) + "\n")


def read_parts(build_dir: Path) -> list[MaskingPart]:
    """Read the list of masking tasks of a build folder."""
    content = json.loads((build_dir / _PARTS_NAME).read_text(encoding="utf-8"))
    return [MaskingPart(**part) for part in content]


def write_nvidia_shards(
    folder: Path, part: MaskingPart, dupe_factor: int, vocabulary: MaskingVocabulary, seed: int
) -> list[dict[str, Any]]:
    """Mask a native shard, and write one shard in NVIDIA's format beside it for each duplicate.

    Args:
        folder: the folder of the native shard.
        part: the shard and its place in its split.
        dupe_factor: sets of masks for each training row.
        vocabulary: the vocabulary of the build.
        seed: seed of the masks, in [0, 2^32).

    Returns:
        The records of the shards, in the order of the duplicates, as dictionaries.

    Raises:
        ValueError: a row has more masks than the format can store.
        OSError: the disk is full or the folder cannot be written.
    """
    shard = Shard(folder / part.file)
    records = []
    for duplicate in range(part.dupe_factor(dupe_factor)):
        blocks = []
        for first in range(0, part.rows, _BLOCK_ROWS):
            rows = {
                name: column[first : first + _BLOCK_ROWS].astype(np.int64) for name, column in shard.columns.items()
            }
            count = len(rows["length"])
            masked = mask_tokens(
                rows["input_ids"],
                rows["length"],
                np.arange(part.first_row + first, part.first_row + first + count),
                np.full(count, duplicate),
                vocabulary=vocabulary,
                seed=seed,
            )
            blocks.append(encode(rows, masked, has_pairs=shard.attributes.objective != "mlm"))
        columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        path = folder / f"masked_{duplicate:03d}_{part.file}"
        records.append(dataclasses.asdict(write_nvidia_shard(path, columns)))
    return records


def place_nvidia_shards(
    folder: Path, output_dir: Path, records_of_parts: list[tuple[MaskingPart, list[dict[str, Any]]]]
) -> dict[str, list[ShardRecord]]:
    """Move all shards in NVIDIA's format to their final names; shards that were moved before are skipped.

    Returns:
        The records of each split, with the final names, duplicate by duplicate.
    """
    splits: dict[str, list[ShardRecord]] = {"train": [], "validation": []}
    for duplicate in range(max(len(records) for _, records in records_of_parts)):
        for part, records in records_of_parts:
            if duplicate >= len(records):
                continue
            record, placed = ShardRecord(**records[duplicate]), splits[part.split]
            name = shard_name(part.split, len(placed))
            if (folder / record.file).is_file():
                os.replace(folder / record.file, output_dir / name)
            placed.append(dataclasses.replace(record, file=name))
    return splits
