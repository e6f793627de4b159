"""Rows to shard files: those of one group, and at the end all of them under their final names."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from bert_pld.data.shards import Rows, ShardAttributes, ShardRecord, shard_name, write_shard
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
            name = shard_name(group.split, len(placed))
            if (folder / record.file).is_file():
                os.replace(folder / record.file, output_dir / name)
            placed.append(dataclasses.replace(record, file=name))
    return splits
