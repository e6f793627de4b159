"""Rows to shard files, native or in NVIDIA's format, and the shards to their final names.

In NVIDIA's format every row with several sets of masks, in files of their own.

Duplicate k of a row has the masks that dynamic masking draws for it in epoch k under the build's seed. These depend on
the row's running index in its split, which is known only once all groups are written: so masking is a stage of its own,
one task a native shard. The rows of duplicate 0 come first, in native order, then those of duplicate 1, and so on.
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


def write_group(
    folder: Path, group: Group, rows: Rows, attributes: ShardAttributes, shard_rows: int
) -> list[dict[str, Any]]:
    """Write a group's rows as shards of at most `shard_rows` rows.

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
    """Move all shards from the build folder to their final names; those moved before an interruption stay.

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


DEFAULT_DUPE_FACTOR = 5
_PARTS_NAME = "masking.json"
_BLOCK_ROWS = 1 << 12


@dataclasses.dataclass(frozen=True)
class MaskingPart:
    """The work of one masking task: a native shard and its place in its split."""

    seq_length: int
    split: str
    file: str
    first_row: int
    rows: int

    def dupe_factor(self, asked: int) -> int:
        """How many sets of masks its rows get: as many as asked in training, one in validation."""
        return asked if self.split == "train" else 1


def masking_parts(seq_length: int, records_of_groups: list[tuple[Group, list[dict[str, Any]]]]) -> list[MaskingPart]:
    """The tasks for the native shards of a sequence length, from the groups and their records in order."""
    parts, rows_before = [], {"train": 0, "validation": 0}
    for group, records in records_of_groups:
        for record in records:
            first = rows_before[group.split]
            parts.append(MaskingPart(seq_length, group.split, record["file"], first, record["rows"]))
            rows_before[group.split] += record["rows"]
    return parts


def write_parts(build_dir: Path, parts: list[MaskingPart]) -> None:
    """Keep the list of tasks for the processes that run them."""
    write_atomically(build_dir / _PARTS_NAME, json.dumps([dataclasses.asdict(part) for part in parts]) + "\n")


def read_parts(build_dir: Path) -> list[MaskingPart]:
    """The list of tasks of a build folder."""
    content = json.loads((build_dir / _PARTS_NAME).read_text(encoding="utf-8"))
    return [MaskingPart(**part) for part in content]


def write_nvidia_shards(
    folder: Path, part: MaskingPart, dupe_factor: int, vocabulary: MaskingVocabulary, seed: int
) -> list[dict[str, Any]]:
    """Mask a native shard and write one shard of NVIDIA's format for each duplicate beside it.

    Args:
        folder: where the native shard is.
        part: which shard, and where it stands in its split.
        dupe_factor: sets of masks for each training row.
        vocabulary: of the build.
        seed: of the masks, in [0, 2^32).

    Returns:
        The records of the shards, in the order of the duplicates, as dictionaries.

    Raises:
        ValueError: a row has more masks than the format has room for.
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
    """Move all shards from the build folder to their final names; those moved before an interruption stay.

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
