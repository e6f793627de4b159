"""The rows of a directory of NVIDIA's shards, read like native ones, and their static masks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_pld.data import shards
from bert_pld.data.masking import MaskedTokens
from bert_pld.data.nvidia_format import Header, find_shards, read_header, sampled_digest
from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import COLUMNS, MANIFEST_NAME, Manifest, ShardAttributes, ShardRecord
from bert_pld.data.tokenizer import SPECIAL_TOKENS, bert_tokenizer, count_capitals, read_entries
from bert_pld.data.unpacked_shards import PackedShard, UnpackedShard, unpack_all
from bert_pld.files import TOKENIZER, VOCABULARY, write_atomically

_LARGEST_SHARE_OF_CAPITALS = 0.01


class NvidiaRows(ShardedRows):
    """All rows of one split: `read` returns the original tokens, `read_masked` also the files' own masks.

    Opening unpacks every shard of the split that is not unpacked yet (`bert_pld.data.unpacked_shards`). If the
    directory has no manifest, one is derived from the names and shapes of its files and from the vocabulary, for which
    `vocab_file` is used in a directory without `vocab.txt`.

    Raises:
        ValueError: the split or the vocabulary is missing, the vocabulary does not fit the shards, the shards differ in
            shape, a file is damaged or of another format, or the disk is full; names the file.
    """

    format = shards.NVIDIA_FORMAT_NAME
    has_masks = True

    def __init__(
        self, data_dir: str | Path, split: str, vocab_file: Path | None = None, follow_links: bool = False
    ) -> None:
        directory = Path(data_dir)
        vocabulary_path = find_vocabulary(directory, vocab_file)
        has_manifest = (directory / MANIFEST_NAME).is_file()
        manifest = None if has_manifest else derive_manifest(directory, vocabulary_path, follow_links)
        super().__init__(directory, split, manifest, follow_links)
        self.vocabulary_path = vocabulary_path
        if not has_manifest:
            self.described_in = self.records[0].file
        headers = [read_header(self.data_dir / record.file) for record in self.records]
        self._predictions = headers[0].predictions
        seq_length, has_pairs = self.attributes.seq_length, self.attributes.objective != "mlm"
        self._packed = []
        for record, header in zip(self.records, headers, strict=True):
            path = self.data_dir / record.file
            expected = Header(record.rows, seq_length, self._predictions, has_pairs)
            if header != expected:
                raise ValueError(f"{path}: has {header}, expected {expected}")
            self._packed.append(PackedShard.inspect(path, header, self.attributes.token_dtype))
        unpack_all(self._packed)
        # Check them now, not in the middle of a run; they are not kept open here.
        tokens = [self._open_shard(index).tokens for index in range(len(self._packed))]
        if not has_manifest:
            counted = zip(self.records, tokens, strict=True)
            self.records = [dataclasses.replace(record, tokens=count) for record, count in counted]
            splits = {**self.manifest.splits, split: self.records}
            self.manifest = dataclasses.replace(self.manifest, splits=splits)

    def _open_shard(self, index: int) -> UnpackedShard:
        packed = self._packed[index]
        unpack_all([packed])  # again, if the cache was emptied
        shard = UnpackedShard(packed.file)
        vocabulary_size, cls_id = self.attributes.vocabulary_size, self.manifest.special_tokens["cls"]
        if shard.largest_id >= vocabulary_size:
            raise ValueError(
                f"{packed.path}: has token id {shard.largest_id}; the vocabulary {self.vocabulary_path} has"
                f" {vocabulary_size} entries, so the shard was made with another vocabulary"
            )
        first = shard.columns["input_ids"][:1, 0].tolist()
        # Once the first row begins with [CLS], a row that begins differently does not.
        wrong = [(0, first[0])] if first and first[0] != cls_id else [shard.other_start] if shard.other_start else []
        for row, identity in wrong:
            raise ValueError(
                f"{packed.path}: row {row} begins with id {identity}, not with [CLS], which is {cls_id} in"
                f" {self.vocabulary_path}"
            )
        return shard

    def read_masked(self, indices: NDArray[np.integer[Any]]) -> tuple[dict[str, NDArray[Any]], MaskedTokens]:
        """Return the rows at `indices` as `read` does, with its errors, and the same rows as the files mask them."""
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
        """Write `vocab.txt` and `tokenizer.json` into a folder; without a `tokenizer.json`, build one."""
        entries = read_entries(self.vocabulary_path)
        write_atomically(folder / VOCABULARY, "".join(f"{entry}\n" for entry in entries))
        if (self.data_dir / TOKENIZER).is_file() and (self.data_dir / VOCABULARY).is_file():
            shutil.copyfile(self.data_dir / TOKENIZER, folder / TOKENIZER)
            return
        tokenizer = bert_tokenizer(entries, self.attributes.casing == "cased")
        write_atomically(folder / TOKENIZER, json.dumps(json.loads(tokenizer.to_str()), indent=2) + "\n")


def find_vocabulary(data_dir: Path, vocab_file: Path | None) -> Path:
    """Return the path of a directory's vocabulary: its `vocab.txt`, or else `vocab_file`; they must not differ."""
    own = data_dir / VOCABULARY
    if vocab_file is None:
        if not own.is_file():
            raise ValueError(
                f"data directory {data_dir}: has shards in NVIDIA's format but no {VOCABULARY};"
                f" add it, or set data.vocab_file"
            )
        return own
    if own.is_file() and read_entries(own) != read_entries(vocab_file):
        raise ValueError(f"data.vocab_file: {vocab_file} differs from {own}, the vocabulary of the shards")
    return own if own.is_file() else vocab_file


def derive_manifest(data_dir: Path, vocabulary_path: Path, follow_links: bool = False) -> Manifest:
    """Return a manifest for a directory without one. The digests are of samples, and tokens are not counted (0).

    `NvidiaRows` counts those of its own split, which it unpacks.

    A vocabulary with capital letters in more than 1 % of its entries is considered cased.
    """
    entries = read_entries(vocabulary_path)
    missing = [token for token in SPECIAL_TOKENS.values() if token not in entries]
    if missing:
        raise ValueError(f"{vocabulary_path}: no entry {', '.join(missing)} among {len(entries)}")
    special = {name: entries.index(token) for name, token in SPECIAL_TOKENS.items()}
    if special["pad"] != 0:
        raise ValueError(f"{vocabulary_path}: [PAD] has id {special['pad']}; must be 0 in NVIDIA's format")
    shapes: dict[Path, tuple[int, int, bool]] = {}
    splits: dict[str, list[ShardRecord]] = {}
    for split, paths in find_shards(data_dir, follow_links).items():
        records = splits.setdefault(split, [])
        for path in paths:
            header = read_header(path)
            shapes[path] = header.shape
            name = str(path.relative_to(data_dir))
            records.append(ShardRecord(name, header.rows, 0, path.stat().st_size, sampled_digest(path)))
    first, common = next(iter(shapes.items()))
    for path, shape in shapes.items():
        if shape != common:
            raise ValueError(f"{path}: {_describe_shape(*shape)}, but {first.name} has {_describe_shape(*common)}")
    seq_length, _, has_pairs = common
    attributes = ShardAttributes(
        vocabulary_hash=shards.vocabulary_hash(entries),
        vocabulary_size=len(entries),
        casing="cased" if count_capitals(entries) > _LARGEST_SHARE_OF_CAPITALS * len(entries) else "uncased",
        seq_length=seq_length,
        objective="mlm+nsp" if has_pairs else "mlm",
        source=f"shards of NVIDIA's format ({data_dir.name})",
        seed=0,
    )
    return Manifest(attributes, splits, {}, special, shards.NVIDIA_FORMAT_NAME)


def _describe_shape(seq_length: int, predictions: int, has_pairs: bool) -> str:
    pairs = "" if has_pairs else "no "
    return f"rows of {seq_length} tokens, at most {predictions} masks, {pairs}next sentence labels"


def open_rows(
    data_dir: str | Path, split: str, vocab_file: Path | None = None, follow_links: bool = False
) -> ShardedRows:
    """Open a split of a data directory in either format, which its manifest or, without one, its files determine.

    Arguments and errors are those of `NvidiaRows`; `vocab_file` has no effect on native shards. With `follow_links`,
    files may be symlinks to outside the directory, which otherwise is an error.
    """
    directory = Path(data_dir)
    if (directory / MANIFEST_NAME).is_file():
        nvidia = Manifest.read(directory, follow_links).format == shards.NVIDIA_FORMAT_NAME
    else:
        unfinished = any((folder / ".build").is_dir() for folder in (directory, directory.parent))
        nvidia = directory.is_dir() and not unfinished and bool(find_shards(directory, follow_links))
    if nvidia:
        return NvidiaRows(directory, split, vocab_file, follow_links)
    return ShardedRows(directory, split, follow_links=follow_links)
