"""Random reads of the rows of a split, over all its shards; and the data directory of a sequence length."""

from __future__ import annotations

import bisect
import itertools
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from bert_pld.data.contained_files import reject_links_outside
from bert_pld.data.documents import misplaced_starts, unpack_starts
from bert_pld.data.opening import read_ahead
from bert_pld.data.shards import (
    DOCUMENT_STARTS,
    FORMAT_NAME,
    MANIFEST_NAME,
    NO_PAIR,
    Manifest,
    Shard,
    ShardAttributes,
)
from bert_pld.files import TOKENIZER, TOKENIZER_FILES, VOCABULARY

_SEQ_DIRECTORY = re.compile(r"seq_(\d+)")


def resolve_data_dir(data_dir: str | Path, seq_length: int, follow_links: bool = False) -> Path:
    """Return the data directory for sequences of `seq_length` tokens, which may not be a valid one.

    A build for several lengths writes `DIR/seq_128`, `DIR/seq_512`, …; each is a data directory of its own. For such a
    `data_dir` the result is `data_dir/seq_<seq_length>`, otherwise `data_dir`.

    Raises:
        ValueError: `seq_<S>` directories exist, but not for this length; or it is a symlink out of `data_dir`, without
            `follow_links`.
    """
    directory = Path(data_dir)
    if (directory / MANIFEST_NAME).exists() or not directory.is_dir():
        return directory
    found = [match for path in directory.iterdir() if path.is_dir() and (match := _SEQ_DIRECTORY.fullmatch(path.name))]
    names = dict(sorted((int(match[1]), match[0]) for match in found))
    if not names:
        return directory
    if seq_length not in names:
        raise ValueError(
            f"data directory {directory}: no seq_{seq_length} for data.seq_length {seq_length}; found"
            f" {', '.join(names.values())}"
        )
    if not follow_links:
        reject_links_outside(directory, [names[seq_length]])
    return directory / names[seq_length]


class MappedShard(Protocol):
    """An opened shard of either format."""

    path: Path
    """The mapped file."""
    rows: int
    columns: dict[str, NDArray[Any]]
    offsets: dict[str, int]
    """Column → its first byte in the file."""


class ShardedRows:
    """All rows of one split, addressed by one running index over its shards.

    A subclass for another format overrides how a shard is opened.

    Opening reads the manifest and compares the shards' sizes with it, so that a missing or truncated shard is found at
    once and not in the middle of a run. A shard is opened when it is first used and stays mapped. Forked and spawned
    workers can use the object: maps are not pickled.

    Raises:
        ValueError: the split is missing or empty, or a shard contradicts the manifest; names the file.
    """

    format: ClassVar[str] = FORMAT_NAME
    """The format that the manifest must have."""
    has_masks: ClassVar[bool] = False
    """Whether the shards have masks of their own, read by `read_masked`."""

    def __init__(
        self, data_dir: str | Path, split: str, manifest: Manifest | None = None, follow_links: bool = False
    ) -> None:
        self.data_dir = Path(data_dir)
        self.manifest = manifest or Manifest.read(self.data_dir, follow_links)
        self.described_in = MANIFEST_NAME
        self.vocabulary_path = self.data_dir / VOCABULARY
        if self.manifest.format != self.format:
            raise ValueError(f"{self.data_dir / MANIFEST_NAME}: shards of format {self.manifest.format!r}")
        self.records = self.manifest.splits.get(split, [])
        self.split = split
        ends = np.cumsum([record.rows for record in self.records], dtype=np.int64)
        self._starts: list[int] = [0, *ends.tolist()]
        self._starts_array = np.array(self._starts, np.int64)
        if not len(self):
            raise ValueError(f"data directory {self.data_dir}: split '{split}' has no rows")
        self.check_sizes()
        self._open: dict[int, MappedShard] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def check_sizes(self) -> None:
        """Raise a ValueError that names the file if a shard is missing or has another size than in the manifest."""
        for record in self.records:
            path = self.data_dir / record.file
            found = path.stat().st_size if path.is_file() else None
            if found != record.bytes:
                state = "is missing" if found is None else f"has {found} bytes"
                raise ValueError(f"{path}: {state}; the {MANIFEST_NAME} says {record.bytes} bytes")

    @property
    def attributes(self) -> ShardAttributes:
        """The attributes that all shards share."""
        return self.manifest.attributes

    def shard(self, index: int) -> MappedShard:
        """Return the n-th shard; open it and check it against the manifest when it is first used."""
        if index not in self._open:
            self._open[index] = self._open_shard(index)
        return self._open[index]

    def _open_shard(self, index: int) -> MappedShard:
        record = self.records[index]
        path = self.data_dir / record.file
        shard = Shard(path)
        if shard.attributes != self.attributes or shard.rows != record.rows:
            raise ValueError(f"{path}: does not belong to this directory's {MANIFEST_NAME} (other attributes or rows)")
        return shard

    def read(self, indices: NDArray[np.integer[Any]]) -> dict[str, NDArray[Any]]:
        """Return one array per column, int64 `[len(indices), …]`; indices may be repeated and in any order.

        An index outside [0, rows) is a ValueError, and so is a shard that contradicts the manifest.
        """
        return self._gather(indices, {name: shape for name, (_, shape) in self.attributes.columns.items()})

    def save_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer's files into a folder; those of another tokenizer there are removed."""
        for name in TOKENIZER_FILES:
            if name == TOKENIZER or (self.data_dir / name).is_file():
                shutil.copyfile(self.data_dir / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)

    def _gather(
        self, indices: NDArray[np.integer[Any]], row_shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, NDArray[Any]]:
        """Return some columns of the rows at `indices`; `row_shapes` gives the columns with the shape of one row."""
        order = np.argsort(indices, kind="stable")
        ascending = np.asarray(indices)[order]
        if len(order) and not 0 <= ascending[0] <= ascending[-1] < len(self):
            raise ValueError(
                f"data directory {self.data_dir}: rows {ascending[0]} to {ascending[-1]} requested, split"
                f" '{self.split}' has [0, {len(self)})"
            )
        starts = self._starts_array
        owners = np.searchsorted(starts, ascending, side="right") - 1
        local = ascending - starts[owners]
        bounds = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(order)] if len(order) else [0]
        first_shard = self.shard(int(owners[0]) if len(order) else 0)
        dtypes = {name: column.dtype for name, column in first_shard.columns.items()}
        gathered = {name: np.empty((len(order), *shape), dtypes[name]) for name, shape in row_shapes.items()}
        # A micro-batch may use as many shards as it has rows, so only `take` runs per shard and column; checks,
        # conversion and reordering run once for all rows.
        for begin, end in itertools.pairwise(bounds):
            columns, shard_rows = self.shard(int(owners[begin])).columns, local[begin:end]
            for name, target in gathered.items():
                columns[name].take(shard_rows, axis=0, out=target[begin:end], mode="clip")
        self._check_values(gathered, ascending)
        out = {name: np.empty(column.shape, np.int64) for name, column in gathered.items()}
        for name, column in gathered.items():
            out[name][order] = column
        return out

    def _check_values(self, gathered: dict[str, NDArray[Any]], ascending: NDArray[np.integer[Any]]) -> None:
        """Raise for impossible values: a file is checked when opened but may be overwritten while training runs."""
        seq_length = self.attributes.seq_length
        limits = {
            "input_ids": (0, self.attributes.vocabulary_size - 1),
            "length": (1, seq_length),
            "segment_b_start": (0, seq_length),
            "next_sentence_label": (NO_PAIR, 1),
        }
        for name, (lowest, highest) in limits.items():
            column = gathered[name]
            is_valid_below = (not lowest and column.dtype.kind == "u") or column.min(initial=lowest) >= lowest
            if is_valid_below and column.max(initial=lowest) <= highest:
                continue
            invalid = (column < lowest) | (column > highest)
            row = int(invalid.reshape(len(column), -1).any(axis=1).argmax())
            what = f"has {name} {int(column[invalid][0])}, which must be in [{lowest}, {highest}]"
            raise self._damaged_row(int(ascending[row]), what)
        if DOCUMENT_STARTS in gathered:
            misplaced = misplaced_starts(unpack_starts(gathered[DOCUMENT_STARTS], seq_length), gathered["length"])
            if misplaced.any():
                what = "has no document that starts at position 0, or one that starts in the padding"
                raise self._damaged_row(int(ascending[misplaced.argmax()]), what)

    def _damaged_row(self, index: int, what: str) -> ValueError:
        owner = bisect.bisect_right(self._starts, index) - 1
        return ValueError(
            f"{self.data_dir / self.records[owner].file}: damaged, row {index - self._starts[owner]} {what};"
            f" `python -m data_prep verify {self.data_dir}` checks all shards"
        )

    def read_ahead(self, first: int, count: int) -> None:
        """Ask the system to load rows `first` to `first + count - 1` into its cache, without waiting."""
        last = min(first + count, len(self))
        while first < last:
            index = bisect.bisect_right(self._starts, first) - 1
            shard, end = self.shard(index), min(last, self._starts[index + 1])
            local = first - self._starts[index]
            ranges = []
            for name, column in shard.columns.items():
                row_bytes = column.nbytes // shard.rows
                ranges.append((shard.offsets[name] + local * row_bytes, (end - first) * row_bytes))
            read_ahead(shard.path, ranges)
            first = end
