"""NVIDIA's static shard format (DeepLearningExamples BERT, academic-budget-BERT): its only definition here.

A data directory holds HDF5 files, one per shard, usually without a manifest. All datasets are compressed with gzip, and
there are no attributes:

    input_ids             int32 [N, S]   [CLS] A [SEP] (B [SEP]), then 0; already masked
    input_mask            int8 [N, S]    1 where there is a token
    segment_ids           int8 [N, S]    1 in segment B
    masked_lm_positions   int32 [N, P]   ascending, then 0
    masked_lm_ids         int32 [N, P]   the original tokens at these positions, then 0
    next_sentence_labels  int8 [N]       0 B follows A, 1 B is random; absent in academic-budget-BERT

A list of masks ends at the first position 0. In the first entry, position 0 is a mask if its id is not 0. Scattering
`masked_lm_ids` back gives the original sequence. The split and the order of the files follow from their names:
`<name>_{training,test}_<i>.hdf5`, `{train,test}_shard_<i>.hdf5`, or `{training,test}/<any name>.hdf5`; `test` is the
validation split.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from bert_pld.data.contained_files import reject_links_outside
from bert_pld.data.masking import MaskedTokens
from bert_pld.data.opening import ShardError, contained_dataset, opened
from bert_pld.data.shards import FORMAT_NAME, IS_NEXT, NO_PAIR, RANDOM_NEXT, Rows, ShardRecord
from bert_pld.files import TOKENIZER, VOCABULARY, written_aside

DTYPES = {
    "input_ids": np.int32,
    "input_mask": np.int8,
    "segment_ids": np.int8,
    "masked_lm_positions": np.int32,
    "masked_lm_ids": np.int32,
    "next_sentence_labels": np.int8,
}
LABELS = "next_sentence_labels"
SUFFIXES = (".hdf5", ".h5")
"""In small letters; a name may have capitals."""

_SPLIT_WORDS = {"train": "train", "test": "validation", "eval": "validation"}
_SPLIT_WORD = re.compile(r"(?<![a-z])(?:pre)?(train|test|eval)(?:ing|uation|set)?(?![a-z])", re.IGNORECASE)
_FOLDER = re.compile(r"(?:pre)?(?:train|test|eval)(?:ing|uation|set)?", re.IGNORECASE)
_WRITTEN_NAMES = {"train": "bert_training", "validation": "bert_test"}
_USUAL_PREDICTIONS = {128: 20, 512: 80}
_LONGEST_SEQUENCE = 2**16 - 1
_LAST = np.iinfo(np.int64).max
_BLOCK_ROWS = 1 << 12
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


def predictions_per_row(seq_length: int) -> int:
    """Return P for rows of S tokens: 20 for 128 and 80 for 512, as in NVIDIA's shards, else ceil(0.15 · S) + 1."""
    return _USUAL_PREDICTIONS.get(seq_length, math.ceil(0.15 * seq_length) + 1)


def shard_name(split: str, index: int) -> str:
    """Return the file name of a split's n-th shard; both projects' readers recognize its split."""
    return f"{_WRITTEN_NAMES[split]}_{index}.hdf5"


def find_shards(data_dir: Path, follow_links: bool = False) -> dict[str, list[Path]]:
    """Return the shard files of a directory without a manifest, by split, in the order of the numbers in their names.

    The files lie in the directory, and the last word `train…` or `test…` in a name gives the split:
    `pretraining_test_0.hdf5` belongs to the test split, `latest_0.hdf5` to none. Or they lie in folders with the name
    of a split, `training` and `test`, and have any names.

    Raises:
        ValueError: an HDF5 file is not a shard of this format, its split is unknown, there are files in both places or
            in a folder within the folder of a split, or one is a symlink to outside and `follow_links` is not set.
    """
    found: dict[str, list[Path]] = {}
    for path in _shards_in(data_dir, data_dir, follow_links):
        split = _split_of(path.stem)
        if split is None:
            read_header(path)
            raise ValueError(f"{path}: belongs to no split; a shard's name must contain the word 'train' or 'test'")
        found.setdefault(split, []).append(path)
    folders = [path for path in data_dir.iterdir() if path.is_dir() and _FOLDER.fullmatch(path.name)]
    for folder in sorted(folders, key=_natural_order):
        if not follow_links:
            reject_links_outside(data_dir, [folder.name])
        paths = _shards_in(folder, data_dir, follow_links)
        split = _split_of(folder.name)
        assert split is not None
        for inner in filter(Path.is_dir, sorted(folder.iterdir())):
            if any(_has_suffix(path) for path in inner.rglob("*")):
                raise ValueError(f"{inner}: shards in this folder would not be read; move them into {folder}")
        if paths and split in found:
            raise ValueError(f"{folder}: there are also shards of this split in {found[split][0].parent}; keep one")
        if paths:
            found[split] = paths
    return found


def _shards_in(folder: Path, root: Path, follow_links: bool) -> list[Path]:
    if not follow_links:
        names = [path.name for path in folder.iterdir()]
        checked = [name for name in names if name.lower().endswith((*SUFFIXES, VOCABULARY, TOKENIZER))]
        reject_links_outside(folder, checked, root)
    paths = sorted(folder.iterdir(), key=_natural_order)
    return [path for path in paths if _has_suffix(path) and not path.name.startswith(".") and path.is_file()]


def _has_suffix(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _split_of(name: str) -> str | None:
    """Return the split that the last word for one in a name says; None without such a word."""
    words = _SPLIT_WORD.findall(name)
    return _SPLIT_WORDS[words[-1].lower()] if words else None


def _natural_order(path: Path) -> list[tuple[str, int, str]]:
    return [(text, int(digits), digits) for text, digits in re.findall(r"(\D*)(\d+)", path.name)] + [(path.name, 0, "")]


@dataclasses.dataclass(frozen=True)
class Header:
    """The shape of a shard, known from its datasets before any row is read."""

    rows: int
    seq_length: int
    predictions: int
    """P, the maximum number of masks in a row."""
    has_pairs: bool
    """Whether the shard has next sentence labels."""

    @property
    def shape(self) -> tuple[int, int, bool]:
        """The part that must be the same in all shards of a directory."""
        return self.seq_length, self.predictions, self.has_pairs


def read_header(path: Path) -> Header:
    """Return a shard's header; a ValueError if the file is missing, cut short, not HDF5, or has other datasets."""
    with opened(path) as file:
        return _header(path, file)


def _header(path: Path, file: h5py.File) -> Header:
    if file.attrs.get("format") == FORMAT_NAME:
        raise ShardError(f"{path}: a native shard in a directory without manifest.json (an unfinished build)")
    names = set(file.keys())  # `name in file` would follow a link
    missing = [name for name in DTYPES if name != LABELS and name not in names]
    if missing:
        raise ShardError(f"{path}: not a shard in NVIDIA's format (no dataset {', '.join(missing)})")
    shapes = {name: contained_dataset(path, file, name).shape for name in DTYPES if name in names}
    two_dimensions = len(shapes["input_ids"]) == len(shapes["masked_lm_ids"]) == 2
    rows, seq_length = shapes["input_ids"] if two_dimensions else (0, 0)
    predictions = shapes["masked_lm_ids"][1] if two_dimensions else 0
    for name, shape in shapes.items():
        expected = (rows,) if name == LABELS else (rows, predictions if name.startswith("masked") else seq_length)
        if shape != expected or not np.issubdtype(file[name].dtype, np.integer):
            raise ShardError(
                f"{path}: dataset {name} is {file[name].dtype} {list(shape)}, expected integers"
                f" {list(expected) if two_dimensions else 'in two dimensions'}"
            )
    if not predictions:
        raise ShardError(f"{path}: masked_lm_ids has no column for a mask (shape {list(shapes['masked_lm_ids'])})")
    if not 1 <= seq_length <= _LONGEST_SEQUENCE:
        raise ShardError(f"{path}: sequences of {seq_length} tokens; must be 1 to {_LONGEST_SEQUENCE}")
    return Header(rows, seq_length, predictions, LABELS in names)


def read_blocks(path: Path) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """Yield a shard's rows in blocks, from first to last, each with the index of its first row.

    A block has the four native columns (`bert_pld.data.shards`) with the original tokens. It also has `mask_count`
    `[n]`, `mask_positions` `[n, P]` (ascending, then 0) and `mask_inputs` `[n, P]`, the ids in the file at these
    positions. All are int64.

    Raises:
        ValueError: the file is cut short or damaged, or a row is invalid; names the file and the row.
    """
    with opened(path) as file:
        header = _header(path, file)
        chunk_rows = (file["input_ids"].chunks or (1,))[0]
        block_rows = max(_BLOCK_ROWS // chunk_rows, 1) * chunk_rows  # whole chunks: none is decompressed twice
        for first in range(0, header.rows, block_rows):
            rows = slice(first, first + block_rows)
            stored = {name: file[name][rows].astype(np.int64) for name in DTYPES if name in file}
            yield first, _decode(path, first, stored)


def _decode(path: Path, first: int, stored: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    ids, positions, targets = stored["input_ids"], stored["masked_lm_positions"], stored["masked_lm_ids"]
    seq_length, predictions = ids.shape[1], positions.shape[1]
    token_positions = np.arange(seq_length)
    length = stored["input_mask"].sum(axis=1)
    segment_b = stored["segment_ids"] == 1
    start = np.where(segment_b.any(axis=1), segment_b.argmax(axis=1), length)
    is_token = token_positions < length[:, None]

    ends = positions == 0
    ends[:, :1] &= targets[:, :1] == 0
    count = np.where(ends.any(axis=1), ends.argmax(axis=1), predictions)
    listed = np.arange(predictions) < count[:, None]
    order = np.argsort(np.where(listed, positions, _LAST), axis=1, kind="stable")
    positions, targets = (np.take_along_axis(array, order, axis=1) for array in (positions, targets))
    outside = listed & ((positions < 0) | (positions >= length[:, None]))
    repeated = listed[:, 1:] & (positions[:, 1:] == positions[:, :-1])
    labels = stored.get(LABELS, np.full(len(ids), NO_PAIR, np.int64))

    def refuse(invalid: NDArray[np.bool_], fault: str) -> None:
        if invalid.any():
            raise ShardError(f"{path}: row {first + int(invalid.argmax())}: {fault}")

    refuse(length < 1, "is empty")
    refuse((stored["input_mask"] != is_token).any(axis=1), "input_mask is not ones and then zeros")
    refuse(
        (stored["segment_ids"] != (is_token & (token_positions >= start[:, None]))).any(axis=1),
        "segment_ids are not zeros, ones for segment B, and zeros for padding",
    )
    refuse(outside.any(axis=1), "masked_lm_positions are outside the tokens")
    refuse(repeated.any(axis=1), "masked_lm_positions has a position twice")
    refuse((ids < 0).any(axis=1) | (listed & (targets < 0)).any(axis=1), "a token id is negative")
    refuse((~is_token & (ids != 0)).any(axis=1), "has ids other than 0 after its last token")
    if LABELS in stored:
        refuse((labels != IS_NEXT) & (labels != RANDOM_NEXT), f"{LABELS} is neither 0 nor 1")

    masked_rows, column = np.nonzero(listed)
    masked_positions = positions[masked_rows, column]
    inputs = np.zeros_like(positions)
    inputs[masked_rows, column] = ids[masked_rows, masked_positions]
    originals = ids.copy()
    originals[masked_rows, masked_positions] = targets[masked_rows, column]
    return {
        "input_ids": originals,
        "length": length,
        "segment_b_start": start,
        "next_sentence_label": labels,
        "mask_count": count,
        "mask_positions": np.where(listed, positions, 0),
        "mask_inputs": inputs,
    }


def encode(rows: Rows, masked: MaskedTokens, has_pairs: bool) -> dict[str, NDArray[Any]]:
    """Return native rows and their masks as datasets of this format, with next sentence labels if `has_pairs`.

    A row with more than P masks is a ValueError. So is a mask on the first token: position 0 ends the list of masks.
    """
    count, seq_length = masked.input_ids.shape
    predictions = predictions_per_row(seq_length)
    row, position = np.divmod(masked.positions, seq_length)
    masks = np.bincount(row, minlength=count)
    if count and masks.max() > predictions:
        raise ValueError(
            f"row {int(masks.argmax())} has {int(masks.max())} masks; NVIDIA's format allows {predictions}"
            f" in rows of {seq_length} tokens"
        )
    if (position == 0).any():
        raise ValueError(
            f"row {int(row[position == 0][0])} is masked at its first token; NVIDIA's format cannot store that"
        )
    index_in_list = np.arange(len(row)) - (np.cumsum(masks) - masks)[row]
    positions, targets = np.zeros((2, count, predictions), np.int32)
    positions[row, index_in_list] = position
    targets[row, index_in_list] = masked.labels
    is_token = np.arange(seq_length) < np.asarray(rows["length"])[:, None]
    is_segment_b = is_token & (np.arange(seq_length) >= np.asarray(rows["segment_b_start"])[:, None])
    columns = {
        "input_ids": masked.input_ids,
        "input_mask": is_token,
        "segment_ids": is_segment_b,
        "masked_lm_positions": positions,
        "masked_lm_ids": targets,
    }
    if has_pairs:
        columns[LABELS] = np.asarray(rows["next_sentence_label"])
    return {name: np.asarray(column).astype(DTYPES[name]) for name, column in columns.items()}


def write_nvidia_shard(path: Path, columns: dict[str, NDArray[Any]]) -> ShardRecord:
    """Write the result of `encode` as a shard and return its entry for the manifest.

    The file is written atomically; the same columns give the same bytes.
    """
    memory = io.BytesIO()  # on a full disk, HDF5 itself prints a page of its own tracebacks
    with h5py.File(memory, "w") as file:
        for name, column in columns.items():
            gzip = {"compression": "gzip", "compression_opts": 4} if column.size else {}
            file.create_dataset(name, data=column, track_times=False, **gzip)
    with written_aside(path) as written:
        written.write(memory.getbuffer())
    return ShardRecord(
        file=path.name,
        rows=len(columns["input_ids"]),
        tokens=int(np.sum(columns["input_mask"], dtype=np.int64)),
        bytes=memory.getbuffer().nbytes,
        sha256=hashlib.sha256(memory.getbuffer()).hexdigest(),
    )


def sampled_digest(path: Path) -> str:
    """Return a digest of a file's size and 16 samples of 64 KiB, which identifies a shard without reading all of it."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for sample in range(_SAMPLES):
            file.seek(max(size - _SAMPLE_BYTES, 0) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
