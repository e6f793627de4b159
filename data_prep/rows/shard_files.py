"""Shard files, in the native format and in NVIDIA's format with static masks.

A native shard holds the rows of one group. In NVIDIA's format every row is written several times with different masks:
duplicate k has the masks that dynamic masking draws in epoch k with the build's seed. The masks depend on the row's
index in its split, which is known only after all groups are written. Masking is therefore a stage of its own, with one
task for each native shard. The rows of duplicate 0 come first, in native order, then those of duplicate 1, and so on.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bert_pld.data.masking import MaskingVocabulary, mask_tokens
from bert_pld.data.nvidia_format import encode, shard_name, write_nvidia_shard
from bert_pld.data.shards import SPLITS, Rows, Shard, ShardAttributes, ShardRecord, write_shard
from bert_pld.data.shards import shard_name as native_shard_name
from bert_pld.files import write_atomically
from data_prep.rows.splitting import Group

DEFAULT_DUPE_FACTOR = 5
_PARTS_NAME = "masking.json"
_BLOCK_ROWS = 1 << 12


def write_group(
    folder: Path, group: Group, rows: Rows, attributes: ShardAttributes, shard_rows: int
) -> list[dict[str, Any]]:
    """Write the rows of a group as native shards of at most `shard_rows` rows, and return their records in order."""
    records = []
    for part, first in enumerate(range(0, len(rows["length"]), shard_rows)):
        path = folder / f"{group.split}_{group.number:05d}_{part:03d}.hdf5"
        piece = {name: column[first : first + shard_rows] for name, column in rows.items()}
        records.append(dataclasses.asdict(write_shard(path, piece, attributes)))
    return records


def place_shards(
    folder: Path, output_dir: Path, records_of_groups: list[tuple[Group, list[dict[str, Any]]]]
) -> dict[str, list[ShardRecord]]:
    """Move all native shards to their final names, and return the records of each split."""
    shards = ((group.split, record) for group, records in records_of_groups for record in records)
    return _place(folder, output_dir, shards, native_shard_name)


def place_nvidia_shards(
    folder: Path, output_dir: Path, records_of_parts: list[tuple[MaskingPart, list[dict[str, Any]]]]
) -> dict[str, list[ShardRecord]]:
    """Move all shards in NVIDIA's format to their final names, duplicate by duplicate; return the records."""
    shards = (
        (part.split, records[duplicate])
        for duplicate in range(max(len(records) for _, records in records_of_parts))
        for part, records in records_of_parts
        if duplicate < len(records)
    )
    return _place(folder, output_dir, shards, shard_name)


def _place(
    folder: Path, output_dir: Path, shards: Iterable[tuple[str, dict[str, Any]]], name_of: Callable[[str, int], str]
) -> dict[str, list[ShardRecord]]:
    """Rename the shards in order; those that were moved before an interruption are skipped."""
    splits: dict[str, list[ShardRecord]] = {split: [] for split in SPLITS}
    for split, content in shards:
        record, name = ShardRecord(**content), name_of(split, len(splits[split]))
        if (folder / record.file).is_file():
            os.replace(folder / record.file, output_dir / name)
        splits[split].append(dataclasses.replace(record, file=name))
    return splits


def remove_placed_shards(folder: Path) -> None:
    """Remove the shards, in either format, that an unfinished build has moved to their final names.

    The last one is removed first, so that an interruption leaves no gap, at which the next removal would end.
    """
    for name_of in (native_shard_name, shard_name):
        for split in SPLITS:
            paths = (folder / name_of(split, index) for index in itertools.count())
            for path in reversed(list(itertools.takewhile(Path.is_file, paths))):
                path.unlink()


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
    parts, rows_before = [], dict.fromkeys(SPLITS, 0)
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
    """Mask a native shard of `folder`, write a shard in NVIDIA's format for each duplicate, and return their records.

    A row with more masks than the format can store is a ValueError.
    """
    shard = Shard(folder / part.file)
    records = []
    for duplicate in range(part.dupe_factor(dupe_factor)):
        blocks = []
        for first in range(0, part.rows, _BLOCK_ROWS):
            block = slice(first, first + _BLOCK_ROWS)
            rows = {name: column[block].astype(np.int64) for name, column in shard.columns.items()}
            indices = part.first_row + first + np.arange(len(rows["length"]))
            epochs = np.full(len(indices), duplicate)
            masked = mask_tokens(rows["input_ids"], rows["length"], indices, epochs, vocabulary=vocabulary, seed=seed)
            blocks.append(encode(rows, masked, has_pairs=shard.attributes.objective != "mlm"))
        columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        path = folder / f"masked_{duplicate:03d}_{part.file}"
        records.append(dataclasses.asdict(write_nvidia_shard(path, columns)))
    return records
