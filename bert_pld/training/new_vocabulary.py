"""A new vocabulary on old weights: what each new entry's embedding starts from.

An entry that both tokenizers have keeps its embedding, and so does a special token with the same role. Another entry
starts from the mean of the embeddings of the pieces into which the old tokenizer cuts its text. An entry whose text the
old tokenizer does not know starts from the mean of all embeddings.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from bert_pld.data.fast_tokenizer import entries_of
from bert_pld.data.word_starts import BLANK, WRITTEN_BYTE, bytes_of_printed_characters, kinds_of


@dataclasses.dataclass(frozen=True)
class Sources:
    """The old ids that each new entry starts from; one without any starts from the mean of all."""

    ids: tuple[tuple[int, ...], ...]
    kept: int
    """Number of entries that both tokenizers have."""

    def apply(self, table: Tensor) -> Tensor:
        """Return the rows [new, …] of an old table [old, …]."""
        ids = torch.tensor([index for each in self.ids for index in each], dtype=torch.int64)
        counts = torch.tensor([len(each) for each in self.ids])
        flat = table.reshape(len(table), -1)
        rows = F.embedding_bag(ids, flat, counts.cumsum(0) - counts, mode="mean")
        rows[counts == 0] = flat.mean(0)
        return rows.reshape(-1, *table.shape[1:])

    def describe(self) -> str:
        """Return one line on how many entries start from what."""
        unknown = sum(not each for each in self.ids)
        means = len(self.ids) - self.kept - unknown
        return (
            f"new vocabulary of {len(self.ids):,} entries: {self.kept:,} embeddings taken over, {means:,} from the mean"
            f" of their pieces, {unknown:,} from the mean of all"
        )


def find_sources(
    old: Tokenizer, old_special: Mapping[str, int], new: Tokenizer, new_special: Mapping[str, int]
) -> Sources:
    """Return the sources of a new tokenizer's entries; the special ids are by role, such as `cls`."""
    old_content, new_content = json.loads(old.to_str()), json.loads(new.to_str())
    marks = _marks_of(old_content)
    known = {marks.read(entry): index for index, entry in enumerate(entries_of(old_content)) if entry}
    special = {index: old_special.get(role) for role, index in new_special.items()}
    read = _marks_of(new_content).read
    ids: list[tuple[int, ...]] = []
    texts: dict[int, str] = {}
    for index, entry in enumerate(entries_of(new_content)):
        piece = read(entry)
        same = special[index] if index in special else known.get(piece)
        ids.append(() if same is None else (same,))
        if same is None and index not in special and piece.text:
            texts[index] = " " + piece.text if piece.begins_word and marks.kind == "bytes" else piece.text
    kept = sum(len(each) for each in ids)
    pieces = old.encode_batch(list(texts.values()), add_special_tokens=False)
    unknown = old_special.get("unk")
    for index, encoded in zip(texts, pieces, strict=True):
        ids[index] = tuple(piece for piece in encoded.ids if piece != unknown)
    return Sources(tuple(ids), kept)


@dataclasses.dataclass(frozen=True)
class _Piece:
    """An entry without its tokenizer's marks."""

    text: str
    begins_word: bool
    raw: str = ""
    """The entry itself, if it is a part of a character and so has no text."""


@dataclasses.dataclass(frozen=True)
class _Marks:
    """How a tokenizer's entries show where words begin."""

    kind: str
    """`prefix` (WordPiece's ##), `bytes` (byte-level BPE), `blank` (SentencePiece), or `none`."""
    prefix: str = ""
    byte_of: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Character → the byte that byte-level BPE writes with it."""

    def read(self, entry: str) -> _Piece:
        """Return an entry's text and whether it begins a word."""
        if self.kind == "prefix":
            continues = entry.startswith(self.prefix)
            return _Piece(entry.removeprefix(self.prefix), not continues)
        if self.kind == "blank" and WRITTEN_BYTE.fullmatch(entry):
            return _Piece("", True, raw=entry)
        if self.kind == "blank":
            return _Piece(entry.removeprefix(BLANK), entry.startswith(BLANK))
        if self.kind == "bytes":
            try:
                text = bytes(self.byte_of[character] for character in entry).decode("utf-8")
            except (KeyError, UnicodeDecodeError):  # a special token, or a part of a character
                return _Piece("", True, raw=entry)
            return _Piece(text.removeprefix(" "), text.startswith(" "))
        return _Piece(entry, True)


def _marks_of(content: dict[str, Any]) -> _Marks:
    """Return the marks of a `tokenizer.json`."""
    prefix = content["model"].get("continuing_subword_prefix")
    if prefix:
        return _Marks("prefix", prefix)
    kinds = set().union(*(kinds_of(content.get(part)) for part in ("normalizer", "pre_tokenizer", "decoder")))
    if "ByteLevel" in kinds:
        return _Marks("bytes", byte_of=bytes_of_printed_characters())
    if "Metaspace" in kinds or content["model"]["type"] == "Unigram":
        return _Marks("blank")
    return _Marks("none")
