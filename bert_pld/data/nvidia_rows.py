"""The rows of a directory of NVIDIA's shards, read like native ones, and with the masks that they bring along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_pld.data.masking import MaskedTokens
from bert_pld.data.nvidia_format import Header, find_shards, read_header, sampled_digest
from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import (
    COLUMNS,
    MANIFEST_NAME,
    NVIDIA_FORMAT_NAME,
    Manifest,
    ShardAttributes,
    ShardRecord,
    vocabulary_hash,
)
from bert_pld.data.tokenizer import SPECIAL_TOKENS, bert_tokenizer, count_capitals, read_entries
from bert_pld.data.unpacked_shards import PackedShard, UnpackedShard, unpack_all, unpacked
from bert_pld.files import TOKENIZER, VOCABULARY, write_atomically

_LARGEST_SHARE_OF_CAPITALS = 0.01
_CHECKED_ROWS = 64


class NvidiaRows(ShardedRows):
    """All rows of one split: original tokens by `read`, and the files' own masks by `read_masked`.

    Opening unpacks every shard of the split that is not unpacked yet (`bert_pld.data.unpacked_shards`). Without a
    manifest the directory is described from its files: their names, the shapes in them, and the vocabulary.

    Args:
        data_dir: the directory.
        split: `train` or `validation`.
        vocab_file: the vocabulary, for a directory without `vocab.txt`.

    Raises:
        ValueError: no such split, no vocabulary, a vocabulary that cannot be that of the shards, shards that differ in
            shape, a damaged or foreign file, or no room to unpack (file named).
    """

    format = NVIDIA_FORMAT_NAME
    has_masks = True

    def __init__(self, data_dir: str | Path, split: str, vocab_file: Path | None = None) -> None:
        directory = Path(data_dir)
        vocabulary_path = find_vocabulary(directory, vocab_file)
        has_manifest = (directory / MANIFEST_NAME).is_file()
        manifest = None if has_manifest else describe(directory, vocabulary_path)
        super().__init__(directory, split, manifest)
        self.vocabulary_path = vocabulary_path
        if not has_manifest:
            self.described_in = self.records[0].file
        headers = [read_header(self.data_dir / record.file) for record in self.records]
        self._predictions = headers[0].predictions
        dtype = self.attributes.token_dtype
        self._sources = []
        for record, header in zip(self.records, headers, strict=True):
            path = self.data_dir / record.file
            expected = Header(record.rows, self.attributes.seq_length, self._predictions, self._has_pairs)
            if header != expected:
                raise ValueError(f"{path}: has {header}, expected {expected}")
            self._sources.append(PackedShard.of(path, header, dtype))
        unpack_all(self._sources)
        for index in range(len(self._sources)):  # not kept: a fault is to be known now, not when its turn comes
            self._open_shard(index)

    @property
    def _has_pairs(self) -> bool:
        return self.attributes.objective != "mlm"

    def _open_shard(self, index: int) -> UnpackedShard:
        source = self._sources[index]
        shard = unpacked(source)
        vocabulary_size, cls_id = self.attributes.vocabulary_size, self.manifest.special_tokens["cls"]
        if shard.largest_id >= vocabulary_size:
            raise ValueError(
                f"{source.path}: holds token id {shard.largest_id}; the vocabulary {self.vocabulary_path} has"
                f" {vocabulary_size} entries, so it is another one's"
            )
        first = shard.columns["input_ids"][:_CHECKED_ROWS, 0]
        if (first != cls_id).any():
            row = int((first != cls_id).argmax())
            raise ValueError(
                f"{source.path}: row {row} begins with id {int(first[row])}, not with [CLS], which is {cls_id} in"
                f" {self.vocabulary_path}"
            )
        return shard

    def read_masked(self, indices: NDArray[np.integer[Any]]) -> tuple[dict[str, NDArray[Any]], MaskedTokens]:
        """The rows at `indices` as `read` gives them, and the same rows as they are masked in the files.

        Raises:
            ValueError: an index outside [0, rows), or a damaged shard.
        """
        seq_length, predictions = self.attributes.seq_length, self._predictions
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys((*COLUMNS, "mask_count"), ())
        shapes |= {"input_ids": (seq_length,), "mask_positions": (predictions,), "mask_inputs": (predictions,)}
        columns = self._gather(indices, shapes)
        count, positions, inputs = (columns.pop(name) for name in ("mask_count", "mask_positions", "mask_inputs"))
        listed = np.arange(predictions) < count[:, None]
        flat = (positions + np.arange(len(positions))[:, None] * seq_length)[listed]
        masked = columns["input_ids"].reshape(-1).copy()
        labels = masked[flat]
        masked[flat] = inputs[listed]
        return columns, MaskedTokens(masked.reshape(-1, seq_length), flat, labels)

    def save_tokenizer(self, folder: Path) -> None:
        """Put `vocab.txt` and `tokenizer.json` of these rows into a folder; the latter is made where there is none."""
        if (self.data_dir / TOKENIZER).is_file() and (self.data_dir / VOCABULARY).is_file():
            super().save_tokenizer(folder)
            return
        entries = read_entries(self.vocabulary_path)
        tokenizer = bert_tokenizer(entries, self.attributes.casing == "cased")
        write_atomically(folder / VOCABULARY, "".join(f"{entry}\n" for entry in entries))
        write_atomically(folder / TOKENIZER, json.dumps(json.loads(tokenizer.to_str()), indent=2) + "\n")


def find_vocabulary(data_dir: Path, vocab_file: Path | None) -> Path:
    """The vocabulary of a directory: its `vocab.txt`, or else the file given.

    Raises:
        ValueError: there is neither, or both and they differ.
    """
    own = data_dir / VOCABULARY
    if vocab_file is None:
        if not own.is_file():
            raise ValueError(
                f"data directory {data_dir}: holds shards of NVIDIA's format but no {VOCABULARY};"
                f" put it there, or give data.vocab_file"
            )
        return own
    if own.is_file() and read_entries(own) != read_entries(vocab_file):
        raise ValueError(f"data.vocab_file: {vocab_file}; differs from {own}, which the shards were made with")
    return own if own.is_file() else vocab_file


def describe(data_dir: Path, vocabulary_path: Path) -> Manifest:
    """What a manifest would say of a directory without one. Its tokens are not counted (0), its digests are of samples.

    The vocabulary is taken for cased where more than 1 % of its entries have capital letters.

    Raises:
        ValueError: no shard, or shards of different shapes, or a vocabulary that lacks a special token.
    """
    entries = read_entries(vocabulary_path)
    missing = [token for token in SPECIAL_TOKENS.values() if token not in entries]
    if missing:
        raise ValueError(f"{vocabulary_path}: {', '.join(missing)} missing among {len(entries)} entries")
    special = {name: entries.index(token) for name, token in SPECIAL_TOKENS.items()}
    if special["pad"] != 0:
        raise ValueError(f"{vocabulary_path}: [PAD] is {special['pad']}; it is 0 in NVIDIA's format")
    shapes: dict[Path, tuple[int, int, bool]] = {}
    splits: dict[str, list[ShardRecord]] = {}
    for split, paths in find_shards(data_dir).items():
        records = splits.setdefault(split, [])
        for path in paths:
            header = read_header(path)
            shapes[path] = header.shape
            records.append(ShardRecord(path.name, header.rows, 0, path.stat().st_size, sampled_digest(path)))
    first, common = next(iter(shapes.items()))
    for path, shape in shapes.items():
        if shape != common:
            raise ValueError(f"{path}: {_in_words(*shape)}, but {first.name} beside it has {_in_words(*common)}")
    seq_length, _, has_pairs = common
    attributes = ShardAttributes(
        vocabulary_hash=vocabulary_hash(entries),
        vocabulary_size=len(entries),
        casing="cased" if count_capitals(entries) > _LARGEST_SHARE_OF_CAPITALS * len(entries) else "uncased",
        seq_length=seq_length,
        objective="mlm+nsp" if has_pairs else "mlm",
        source=f"shards of NVIDIA's format ({data_dir.name})",
        seed=0,
    )
    return Manifest(attributes, splits, {}, special, NVIDIA_FORMAT_NAME)


def _in_words(seq_length: int, predictions: int, has_pairs: bool) -> str:
    pairs = "" if has_pairs else "no "
    return f"rows of {seq_length} tokens, at most {predictions} masks, {pairs}next sentence labels"


def open_rows(data_dir: str | Path, split: str, vocab_file: Path | None = None) -> ShardedRows:
    """Open a split of a data directory of either format: as its manifest says, or by its files where it has none.

    Args:
        data_dir: the directory.
        split: `train` or `validation`.
        vocab_file: `data.vocab_file`, for NVIDIA's shards without a `vocab.txt` beside them.

    Raises:
        ValueError: what `ShardedRows` or `NvidiaRows` raise; a directory with neither manifest nor shards.
    """
    directory = Path(data_dir)
    if (directory / MANIFEST_NAME).is_file():
        nvidia = Manifest.read(directory).format == NVIDIA_FORMAT_NAME
    else:
        unfinished = any((folder / ".build").is_dir() for folder in (directory, directory.parent))
        nvidia = directory.is_dir() and not unfinished and bool(find_shards(directory))
    return NvidiaRows(directory, split, vocab_file) if nvidia else ShardedRows(directory, split)
