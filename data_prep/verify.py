"""Checks a data directory against its manifest, and shows a few of its rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bert_pld.data import shards
from bert_pld.data.documents import misplaced_starts, unpack_starts
from bert_pld.data.fast_tokenizer import FastTokenizer
from bert_pld.data.nvidia_format import find_shards, read_blocks, read_header
from bert_pld.data.shards import MANIFEST_NAME, SPLITS, Manifest, Shard, ShardRecord, vocabulary_hash
from bert_pld.data.tokenizer import SPECIAL_TOKENS, bert_tokenizer, read_entries
from bert_pld.files import TOKENIZER, VOCABULARY, file_sha256
from data_prep.rows.vocabulary import unknown_warning

_BLOCK_ROWS = 1 << 14


def verify(data_dir: Path, samples: int = 3, follow_links: bool = False) -> list[str]:
    """Check all files, print `samples` decoded training rows and a summary, and return a line for each fault.

    With `follow_links`, files may be symlinks to outside the directory.
    """
    try:
        if data_dir.is_dir() and not (data_dir / MANIFEST_NAME).exists() and find_shards(data_dir, follow_links):
            raise ValueError(
                f"{data_dir}: has shards in NVIDIA's format, but no {MANIFEST_NAME} with their checksums; there is"
                " nothing to compare them with, and training checks each of them when it starts"
            )
        manifest = Manifest.read(data_dir, follow_links)
    except ValueError as error:
        return [str(error)]
    tokenizer_faults = list(_tokenizer_faults(data_dir, manifest))
    faults = [*tokenizer_faults, *_file_faults(data_dir, manifest)]
    is_nvidia = manifest.format == shards.NVIDIA_FORMAT_NAME
    shard_faults = _nvidia_shard_faults if is_nvidia else _shard_faults
    sound: list[Path] = []
    for records in manifest.splits.values():
        for record in records:
            path = data_dir / record.file
            if not path.is_file():
                faults.append(f"{path}: missing, but the manifest lists it")
                continue
            try:
                found = list(_file_damage(path, record) or shard_faults(path, record, manifest))
            except ValueError as error:
                found = [str(error)]
            faults += found
            if not found:
                sound.append(path)
    if sound and not tokenizer_faults:
        columns = next(read_blocks(sound[0]))[1] if is_nvidia else Shard(sound[0]).columns
        _show(Tokenizer.from_str((data_dir / TOKENIZER).read_text(encoding="utf-8")), columns, samples)
    rows = {split: manifest.rows(split) for split in manifest.splits}
    counts = ", ".join(f"{count:,} {split} rows" for split, count in rows.items())
    result = f"{len(faults)} fault{'s' * (len(faults) != 1)}" if faults else "sound"
    print(f"{data_dir}: {counts}, {sum(map(manifest.tokens, rows)):,} tokens: {result}")
    if warning := unknown_warning(_unknown_share(sound, manifest)):
        print(f"{data_dir}: warning: {warning}")
    return faults


def _unknown_share(paths: list[Path], manifest: Manifest) -> float:
    """Return the share of [UNK] among the tokens of shards, without [CLS], [SEP] and padding."""
    special = manifest.special_tokens
    unknown = tokens = 0
    for path in paths:
        blocks = (
            (block["input_ids"] for _, block in read_blocks(path))
            if manifest.format == shards.NVIDIA_FORMAT_NAME
            else _blocks_of_ids(path)
        )
        for ids in blocks:
            unknown += int(np.count_nonzero(ids == special["unk"])) if "unk" in special else 0
            tokens += int(np.count_nonzero(~np.isin(ids, [special[name] for name in ("pad", "cls", "sep")])))
    return unknown / max(tokens, 1)


def _blocks_of_ids(path: Path) -> Iterator[NDArray[Any]]:
    ids = Shard(path).columns["input_ids"]
    for first in range(0, len(ids), _BLOCK_ROWS):
        yield np.asarray(ids[first : first + _BLOCK_ROWS])


def _tokenizer_faults(data_dir: Path, manifest: Manifest) -> Iterator[str]:
    """Check that the tokenizer's files hold the vocabulary of the shards, with the special tokens at their ids."""
    if manifest.attributes.tokenizer_hash:
        try:
            tokenizer = FastTokenizer.of_shards(data_dir, manifest)
            tokenizer.tokenizer()
        except ValueError as error:
            yield str(error)
            return
        if (tokenizer.hash, len(tokenizer.entries)) != (
            manifest.attributes.vocabulary_hash,
            manifest.attributes.vocabulary_size,
        ):
            yield f"{data_dir / TOKENIZER}: not the vocabulary of these shards (SHA-256 differs from the manifest's)"
        return
    size = manifest.attributes.vocabulary_size
    for name in (TOKENIZER, VOCABULARY):
        path = data_dir / name
        if not path.is_file():
            yield f"{path}: missing"
            continue
        try:
            if name == VOCABULARY:
                entries = read_entries(path)
            else:
                text = path.read_text(encoding="utf-8")
                vocabulary = json.loads(text)["model"]["vocab"]
                entries = sorted(vocabulary, key=vocabulary.__getitem__)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            yield f"{path}: cannot be read ({error!r})"
            continue
        if name == TOKENIZER:
            try:
                tokenizer = Tokenizer.from_str(text)
            except Exception as error:  # the library raises Exception itself
                yield f"{path}: not a tokenizer ({error})"
                continue
        if vocabulary_hash(entries) != manifest.attributes.vocabulary_hash:
            yield f"{path}: not the vocabulary of these shards (SHA-256 differs from the manifest's)"
        elif len(entries) != size:
            yield f"{path}: {len(entries)} entries, but the manifest lists {size}"
        elif missing := [token for token in SPECIAL_TOKENS.values() if token not in entries]:
            yield f"{path}: no entry {', '.join(missing)}"
        elif manifest.special_tokens != {key: entries.index(token) for key, token in SPECIAL_TOKENS.items()}:
            yield f"{path}: the ids of the special tokens differ from the manifest's"
        elif name == TOKENIZER and (parts := _other_parts(tokenizer, entries, manifest.attributes.casing)):
            yield (
                f"{path}: tokenizes differently than the build did: {', '.join(parts)} not as in BERT's"
                f" {manifest.attributes.casing} tokenizer"
            )


def _other_parts(tokenizer: Tokenizer, entries: list[str], casing: str) -> list[str]:
    """Return the parts in which a WordPiece tokenizer differs from the one that a build makes for these entries."""
    found = _content(tokenizer)
    # The manifest does not say whether accents are kept in lower case.
    allowed = [_content(bert_tokenizer(entries, casing == "cased", keep_accents)) for keep_accents in (False, True)]
    # Release 0.1.0 did not cut the long words of scripts such as Thai.
    allowed += [{**made, "pre_tokenizer": {"type": "BertPreTokenizer"}} for made in allowed]
    return min(([part for part in made if found.get(part) != made[part]] for made in allowed), key=len)


def _content(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what determines the ids, as this version of the library writes it."""
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    return {part: value for part, value in content.items() if part not in ("truncation", "padding")}


def _file_faults(data_dir: Path, manifest: Manifest) -> Iterator[str]:
    """Check that both splits have rows, and that the directory holds no shard that the manifest does not list."""
    for split in SPLITS:
        if not manifest.rows(split):
            yield f"{data_dir}: split '{split}' has no rows"
    listed = {record.file for records in manifest.splits.values() for record in records}
    for path in sorted(data_dir.glob("*.hdf5")):
        if path.name not in listed:
            yield f"{path}: unlisted shard, not in the manifest"


def _file_damage(path: Path, record: ShardRecord) -> list[str]:
    size = path.stat().st_size
    if size != record.bytes:
        return [f"{path}: {size} bytes, but the manifest lists {record.bytes}"]
    return [] if file_sha256(path) == record.sha256 else [f"{path}: damaged (SHA-256 differs from the manifest's)"]


def _nvidia_shard_faults(path: Path, record: ShardRecord, manifest: Manifest) -> Iterator[str]:
    """Yield the first fault of a shard in NVIDIA's format: in its datasets, its rows and masks, or its counts."""
    rows = tokens = 0
    attributes, special = manifest.attributes, list(manifest.special_tokens.values())
    header = read_header(path)
    if (header.seq_length, header.has_pairs) != (attributes.seq_length, attributes.objective != "mlm"):
        yield f"{path}: holds {header}, which differs from the manifest"
        return
    for first, block in read_blocks(path):
        rows, tokens = rows + len(block["length"]), tokens + int(block["length"].sum())
        positions = np.minimum(block["mask_positions"], attributes.seq_length - 1)
        listed = np.arange(header.predictions) < block["mask_count"][:, None]
        originals = np.take_along_axis(block["input_ids"], positions, axis=1)
        mask_faults = [
            ("has no masks", (block["mask_count"] == 0) & ~np.isin(block["input_ids"], special).all(axis=1)),
            ("a special token is masked", (np.isin(originals, special) & listed).any(axis=1)),
            ("an id is outside the vocabulary", (block["mask_inputs"] >= attributes.vocabulary_size).any(axis=1)),
        ]
        if fault := _first_fault(first, [*_row_faults(block, manifest), *mask_faults]):
            yield f"{path}: {fault}"
            return
    for what, found, expected in (("rows", rows, record.rows), ("tokens", tokens, record.tokens)):
        if found != expected:
            yield f"{path}: {found} {what}, but the manifest lists {expected}"


def _shard_faults(path: Path, record: ShardRecord, manifest: Manifest) -> Iterator[str]:
    """Yield the faults of a native shard: of its attributes and columns, or else of its rows."""
    shard = Shard(path)
    if shard.attributes != manifest.attributes:
        yield f"{path}: belongs to another build (attributes differ from the manifest's)"
        return
    for name, (dtype, row_shape) in manifest.attributes.columns.items():
        column, shape = shard.columns[name], (record.rows, *row_shape)
        if column.dtype != dtype or column.shape != shape:
            yield f"{path}: column {name} is {column.dtype}{list(column.shape)}, expected {dtype}{list(shape)}"
            return
    tokens = int(np.sum(shard.columns["length"], dtype=np.int64))
    if tokens != record.tokens:
        yield f"{path}: {tokens} tokens, but the manifest lists {record.tokens}"
    for first in range(0, record.rows, _BLOCK_ROWS):
        block = {name: np.asarray(column[first : first + _BLOCK_ROWS]) for name, column in shard.columns.items()}
        if fault := _first_fault(first, _row_faults(block, manifest)):
            yield f"{path}: {fault}"
            return


def _first_fault(first_row: int, rules: Iterable[tuple[str, Any]]) -> str | None:
    """Return the message of the first rule that a block violates; the block begins at row `first_row`."""
    for what, bad in rules:
        if bad.any():
            return f"row {first_row + int(np.argmax(bad))}: {what} ({int(bad.sum())} such rows)"
    return None


def _row_faults(block: dict[str, NDArray[Any]], manifest: Manifest) -> Iterator[tuple[str, Any]]:
    """Yield each rule for rows, as the message of a violation and the rows of the block that violate it."""
    attributes, special = manifest.attributes, manifest.special_tokens
    ids, label = block["input_ids"], block["next_sentence_label"]
    length, b_start = block["length"].astype(np.int64), block["segment_b_start"].astype(np.int64)
    rows = np.arange(len(ids))
    size = attributes.vocabulary_size
    yield f"an id is outside the vocabulary of {size}", np.any(ids >= size, axis=1)
    yield f"length is not between 3 and {attributes.seq_length}", (length < 3) | (length > attributes.seq_length)
    yield "does not begin with [CLS]", ids[:, 0] != special["cls"]
    positions = np.arange(attributes.seq_length)
    last = np.clip(length - 1, 0, attributes.seq_length - 1)
    yield "does not end with [SEP]", ids[rows, last] != special["sep"]
    yield "holds the mask token, but rows are stored without masks", np.any(ids == special["mask"], axis=1)
    is_padding = ids == special["pad"]
    beyond = positions >= length[:, None]
    yield "padding does not begin at position length", np.any(is_padding != beyond, axis=1)
    if attributes.objective == "mlm":
        yield "has a next sentence label or a segment B", (label != shards.NO_PAIR) | (b_start != length)
        if shards.DOCUMENT_STARTS in block:
            yield from _document_faults(block, manifest)
        return
    yield "next_sentence_label is neither 0 nor 1", (label != shards.IS_NEXT) & (label != shards.RANDOM_NEXT)
    yield "segment_b_start is outside the row", (b_start < 3) | (b_start > length - 2)
    before = np.clip(b_start - 1, 0, attributes.seq_length - 1)
    yield "no [SEP] before segment B", ids[rows, before] != special["sep"]


def _document_faults(block: dict[str, NDArray[Any]], manifest: Manifest) -> Iterator[tuple[str, Any]]:
    """Yield the rules for rows that say where their documents start, as in `_row_faults`."""
    ids, special = block["input_ids"], manifest.special_tokens
    is_start = unpack_starts(block[shards.DOCUMENT_STARTS], manifest.attributes.seq_length)
    yield (
        "has no document that starts at position 0, or one that starts in the padding",
        misplaced_starts(is_start, block["length"]),
    )
    yield "has a document that does not begin with [CLS]", np.any(is_start & (ids != special["cls"]), axis=1)
    inner = is_start[:, 1:] & (ids[:, :-1] != special["sep"])
    yield "has a document that does not end with [SEP]", np.any(inner, axis=1)


def _show(tokenizer: Tokenizer, columns: dict[str, NDArray[Any]], samples: int) -> None:
    """Print rows as text, evenly spread over a shard."""
    labels = {shards.IS_NEXT: "B follows A", shards.RANDOM_NEXT: "B is random", shards.NO_PAIR: "no pair"}
    for index in np.unique(np.linspace(0, len(columns["length"]) - 1, samples).astype(int)):
        ids = columns["input_ids"][index, : int(columns["length"][index])].tolist()
        label = labels[int(columns["next_sentence_label"][index])]
        print(f"row {index} ({label}): {tokenizer.decode(ids, skip_special_tokens=False)}")
