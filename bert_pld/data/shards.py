"""The native shard format: its only definition, for writers and readers.

A data directory holds::

    manifest.json              splits, shards, rows, tokens, checksums (Manifest below)
    tokenizer.json, vocab.txt  the tokenizer that made the ids; or the files of `bert_pld.data.fast_tokenizer`
    train_00000.hdf5 …         one file per shard
    validation_00000.hdf5 …

A shard is an HDF5 file of unmasked sequences. It is contiguous and uncompressed, so that a row is one read:

    input_ids            uint16 or uint32 [N, S]   [CLS] A [SEP] (B [SEP]) [PAD] …
    length               uint16 [N]                tokens that are not padding
    segment_b_start      uint16 [N]                first position of segment B; equal to `length` without a segment B
    next_sentence_label  int8 [N]                  0 B follows A, 1 B is random, -1 no pair
    document_starts      uint8 [N, ⌈S/8⌉]          version 2 alone: bit p is 1 if a document starts at position p

The file has the attributes of `ShardAttributes`. Version 2 is for rows of documents that do not attend to each other.
Rows are addressed across all shards of a split by one running index.

A data directory may come from anybody. `bert_pld.data.contained_files` rejects names and symlinks that leave it, and
`bert_pld.data.opening` checks what an HDF5 file refers to.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from bert_pld.data.contained_files import reject_links_outside, require_plain_name
from bert_pld.data.manifest_checks import manifest_fault
from bert_pld.data.opening import ShardError, contained_dataset, map_file, opened
from bert_pld.files import TOKENIZER_FILES, write_atomically, written_aside

FORMAT_NAME = "bert_pld"
FORMAT_VERSIONS = {False: 1, True: 2}
"""Whether shards have `document_starts` → version of their format."""
NVIDIA_FORMAT_NAME = "nvidia"
"""Name in the manifest for shards in the format of `bert_pld.data.nvidia_format`."""
MANIFEST_NAME = "manifest.json"
FORMATS = (FORMAT_NAME, NVIDIA_FORMAT_NAME)
OBJECTIVES = ("mlm+nsp", "mlm")
SPLITS = ("train", "validation")
COLUMNS = {"input_ids": None, "length": np.uint16, "segment_b_start": np.uint16, "next_sentence_label": np.int8}
"""Name → type of the columns that every shard has; None: `ShardAttributes.token_dtype`."""
DOCUMENT_STARTS = "document_starts"

IS_NEXT, RANDOM_NEXT, NO_PAIR = 0, 1, -1

Rows = Mapping[str, NDArray[Any]]
"""Column → values of N rows."""


@dataclasses.dataclass(frozen=True)
class ShardAttributes:
    """The attributes of a shard, the same in all shards of a directory."""

    vocabulary_hash: str
    """SHA-256 of the vocabulary: entries in id order, UTF-8, each followed by a line feed."""
    vocabulary_size: int
    casing: str
    """`cased` or `uncased`."""
    seq_length: int
    objective: str
    """`mlm+nsp` or `mlm`."""
    source: str
    """The sources as given to the build, joined by ', '."""
    seed: int
    tokenizer_hash: str = ""
    """SHA-256 of the tokenizer (`fast_tokenizer.content_hash`); empty, and not stored, for BERT's WordPiece."""
    document_starts: bool = False
    """Whether each row says where its documents start. In a file, the version says so."""

    @property
    def version(self) -> int:
        """The version of the format."""
        return FORMAT_VERSIONS[self.document_starts]

    def stored(self) -> dict[str, str | int]:
        """Return what a file stores beside its version: all attributes with a value."""
        values = dataclasses.asdict(self)
        del values[DOCUMENT_STARTS]
        return {name: value for name, value in values.items() if value != "" or name != "tokenizer_hash"}

    @classmethod
    def restored(cls, version: object, stored: Mapping[str, Any]) -> ShardAttributes:
        """Return the attributes from what a file of this version stores."""
        return cls(**stored, document_starts=version == FORMAT_VERSIONS[True])

    @property
    def columns(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """The columns of a shard: name → type, and shape of one row."""
        columns: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        for name, dtype in COLUMNS.items():
            columns[name] = np.dtype(dtype or self.token_dtype), (self.seq_length,) if name == "input_ids" else ()
        if self.document_starts:
            columns[DOCUMENT_STARTS] = np.dtype(np.uint8), (-(-self.seq_length // 8),)
        return columns

    @property
    def token_dtype(self) -> type[np.unsignedinteger]:
        """The smallest unsigned type for the token ids: uint16 up to 65,536 entries, else uint32."""
        return np.uint16 if self.vocabulary_size <= 2**16 else np.uint32


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """An entry of the manifest: a shard, and how to check that it is complete."""

    file: str
    rows: int
    tokens: int
    """Number of tokens without padding."""
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The table of contents of a data directory."""

    attributes: ShardAttributes
    splits: dict[str, list[ShardRecord]]
    documents: dict[str, int]
    """Split → number of documents."""
    special_tokens: dict[str, int]
    """Ids of pad, unk (where the tokenizer has one), cls, sep and mask."""
    format: str = FORMAT_NAME
    """`bert_pld`, or `nvidia` for shards in NVIDIA's format."""
    attended_tokens: float | None = None
    """Mean length of the document that a token of the training split is in; None, and not stored, without
    `document_starts`."""

    def rows(self, split: str) -> int:
        """Return the number of rows of a split."""
        return sum(record.rows for record in self.splits.get(split, []))

    def tokens(self, split: str) -> int:
        """Return the number of tokens of a split, without padding."""
        return sum(record.tokens for record in self.splits.get(split, []))

    def fingerprint(self) -> str:
        """Return a digest of all shards' contents; a checkpoint stores it to identify its data."""
        digest = hashlib.sha256()
        for split in sorted(self.splits):
            for record in self.splits[split]:
                digest.update(f"{split} {record.rows} {record.sha256}\n".encode())
        return digest.hexdigest()

    def write(self, data_dir: Path) -> None:
        """Write `manifest.json` atomically."""
        payload = {
            "version": self.attributes.version,
            **dataclasses.asdict(self),
            "attributes": self.attributes.stored(),
        }
        if self.attended_tokens is None:
            del payload["attended_tokens"]
        write_atomically(data_dir / MANIFEST_NAME, json.dumps(payload, indent=2, sort_keys=True) + "\n")

    @classmethod
    def read(cls, data_dir: str | Path, follow_links: bool = False) -> Manifest:
        """Read a data directory's manifest; with `follow_links`, files may be symlinks to outside.

        Raises:
            ValueError: the directory is missing or empty; the manifest is missing, damaged or of another version, or
                names a file elsewhere; a file of the directory is a symlink to outside.
        """
        directory = Path(data_dir)
        if not directory.is_dir():
            raise ValueError(f"data directory {directory}: does not exist; create it with `python -m data_prep build`")
        path = directory / MANIFEST_NAME
        if not path.is_file():
            raise ValueError(
                f"data directory {directory}: holds no {MANIFEST_NAME} (empty, or an unfinished build);"
                " create it with `python -m data_prep build`"
            )
        try:
            payload = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: damaged manifest ({error!r})") from error
        try:
            if payload["format"] not in FORMATS or payload["version"] not in FORMAT_VERSIONS.values():
                raise ValueError(f"{path}: not a {FORMAT_NAME} manifest of version 1 or 2")
            manifest = cls(
                attributes=ShardAttributes.restored(payload["version"], payload["attributes"]),
                splits={name: [ShardRecord(**r) for r in records] for name, records in payload["splits"].items()},
                documents=payload["documents"],
                special_tokens=payload["special_tokens"],
                format=payload["format"],
                attended_tokens=payload.get("attended_tokens"),
            )
            names = [record.file for records in manifest.splits.values() for record in records]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: damaged manifest ({error!r})") from error
        for name in names:
            require_plain_name(name, path)
        if fault := manifest_fault(manifest):
            raise ValueError(f"{path}: damaged manifest ({fault})")
        if not follow_links:
            reject_links_outside(directory, [*names, MANIFEST_NAME, *TOKENIZER_FILES])
        return manifest


def vocabulary_hash(entries: list[str]) -> str:
    """Return the SHA-256 of a vocabulary, whose entries are in id order."""
    return hashlib.sha256("".join(entry + "\n" for entry in entries).encode()).hexdigest()


def shard_name(split: str, index: int) -> str:
    """Return the file name of a split's n-th shard."""
    return f"{split}_{index:05d}.hdf5"


def write_shard(path: Path, rows: Rows, attributes: ShardAttributes) -> ShardRecord:
    """Write one shard atomically and return its entry for the manifest.

    The same rows and attributes give the same bytes: no timestamps are stored. A column of another shape is a
    ValueError, and so is a token id outside the vocabulary (it would overflow).
    """
    count, columns = len(rows["length"]), attributes.columns
    for name, (_, row_shape) in columns.items():
        expected = (count, *row_shape)
        if np.shape(rows[name]) != expected:
            raise ValueError(f"{path}: column {name} has shape {np.shape(rows[name])}, expected {expected}")
    if count and not 0 <= np.min(rows["input_ids"]) <= np.max(rows["input_ids"]) < attributes.vocabulary_size:
        raise ValueError(
            f"{path}: token ids {np.min(rows['input_ids'])} to {np.max(rows['input_ids'])} are not all in"
            f" [0, {attributes.vocabulary_size}), the vocabulary"
        )
    # Built in memory, then written: on a full disk, HDF5 itself prints a page of its own tracebacks.
    with h5py.File(path.name, "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        file.attrs["format"] = FORMAT_NAME
        file.attrs["version"] = attributes.version
        for name, value in attributes.stored().items():
            file.attrs[name] = value
        for name, (dtype, _) in columns.items():
            column = np.ascontiguousarray(rows[name], dtype=dtype)
            file.create_dataset(name, data=column, track_times=False)
        file.flush()
        image: bytes = file.id.get_file_image()
    with written_aside(path) as written:
        written.write(image)
    return ShardRecord(
        file=path.name,
        rows=count,
        tokens=int(np.sum(rows["length"], dtype=np.int64)),
        bytes=len(image),
        sha256=hashlib.sha256(image).hexdigest(),
    )


class Shard:
    """One shard opened for random reads.

    Its columns are views of one memory map, so only the requested rows are read. No descriptor stays open, so a process
    can open tens of thousands of shards.

    Raises:
        ShardError: the file is missing, cut short, or not a shard of this format.
    """

    columns: dict[str, NDArray[Any]]
    offsets: dict[str, int]

    def __init__(self, path: Path) -> None:
        with opened(path) as file:
            attributes = file.attrs
            version = attributes.get("version")
            if attributes.get("format") != FORMAT_NAME or version not in FORMAT_VERSIONS.values():
                raise ShardError(f"{path}: not a {FORMAT_NAME} shard of version 1 or 2")
            names = [field.name for field in dataclasses.fields(ShardAttributes) if field.name != DOCUMENT_STARTS]
            values = {name: attributes[name] for name in names if name in attributes or name != "tokenizer_hash"}
            plain = {name: v.item() if isinstance(v, np.generic) else v for name, v in values.items()}
            for name, value in plain.items():
                if not isinstance(value, (str, int)):
                    raise ShardError(f"{path}: attribute {name} is {value!r}; must be a text or an integer")
            self.attributes = ShardAttributes.restored(version, plain)
            mapped = map_file(path)
            self.path, self.columns, self.offsets = path, {}, {}
            wanted = self.attributes.columns
            for name in wanted:
                dataset = contained_dataset(path, file, name)
                self.offsets[name] = _offset(path, dataset)
                self.columns[name] = _column(path, mapped, self.offsets[name], dataset.dtype, dataset.shape)
            self.rows = len(self.columns["length"])
            for name, column in self.columns.items():
                dtype, row_shape = wanted[name]
                shape = (self.rows, *row_shape)
                if column.shape != shape or column.dtype != dtype:
                    raise ShardError(
                        f"{path}: column {name} is {column.dtype} {list(column.shape)}, expected {dtype} {list(shape)}"
                    )


def _offset(path: Path, dataset: h5py.Dataset) -> int:
    """Return the first byte of a contiguous HDF5 dataset in the file."""
    offset = dataset.id.get_offset()
    if offset is None and dataset.size:
        raise ShardError(f"{path}: dataset {dataset.name} is not contiguous")
    return offset or 0


def _column(
    path: Path, mapped: NDArray[np.uint8], offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return a dataset as a view of the mapped file."""
    end = offset + math.prod(shape) * dtype.itemsize
    if end > len(mapped):
        raise ShardError(f"{path}: cut short (has {len(mapped)} bytes, needs {end})")
    return mapped[offset:end].view(dtype).reshape(shape)
