"""Any fast tokenizer: its entries, special tokens and template of rows, and its files.

These files lie beside shards that such a tokenizer made, and in the folders of their runs and checkpoints:

    tokenizer.json            normalizer, pre-tokenizer, model, post-processor: all that determines the ids
    tokenizer_config.json     the special tokens by role, so that `AutoTokenizer` loads the folder
    special_tokens_map.json   the same for older releases of transformers

Shards of a WordPiece vocabulary have `vocab.txt` and BERT's tokenizer instead (`bert_pld.data.tokenizer`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bert_pld.data.shards import Manifest, vocabulary_hash
from bert_pld.data.word_starts import continues_word
from bert_pld.files import SPECIAL_TOKENS_MAP, TOKENIZER, TOKENIZER_CONFIG, write_atomically

ROLES = ("pad", "unk", "cls", "sep", "mask")
REQUIRED_ROLES = ("pad", "cls", "sep", "mask")
LARGEST_VOCABULARY = 1 << 24
"""As in a model's configuration; token ids of shards have 32 bits."""
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


@dataclasses.dataclass(frozen=True)
class RowTemplate:
    """The ids around the texts of a row: `cls A sep pad …`, and for a pair `cls A between B sep pad …`."""

    pad_id: int
    cls_id: int
    between: tuple[int, ...]
    """One separator as in BERT, or two as in RoBERTa."""
    sep_id: int
    segment_b_type: int = 1
    """Token type of segment B: 1 as in BERT, or 0 as in RoBERTa."""

    @classmethod
    def of(cls, content: dict[str, Any], pad_id: int, where: str | Path) -> RowTemplate | None:
        """Return the template that the post-processor makes, or None if it adds nothing.

        One that rows cannot have is a ValueError.
        """
        # A tokenizer of one word with this post-processor is enough, and is built at once.
        small = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": None,
            "post_processor": content["post_processor"],
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
        }
        tokenizer = _from_json(small, where)
        single, pair = tokenizer.encode("a"), tokenizer.encode("a", "a")
        if single.special_tokens_mask == [0]:
            return None
        around = [
            [token for token, is_special in zip(part.ids, part.special_tokens_mask, strict=True) if is_special]
            for part in (single, pair)
        ]
        places = [place for place, sequence in enumerate(pair.sequence_ids) if sequence is not None]
        if (
            single.special_tokens_mask != [1, 0, 1]
            or len(places) != 2
            or places[0] != 1
            or places[1] + 2 != len(pair.ids)
        ):
            raise ValueError(
                f"{where}: the post-processor adds {around[0]} to a text and {around[1]} to a pair of texts; rows need"
                " one token before a text and one after it"
            )
        return cls(pad_id, pair.ids[0], tuple(pair.ids[2 : places[1]]), pair.ids[-1], pair.type_ids[places[1]])


class FastTokenizer:
    """A `tokenizer.json` and its special tokens by role: pad, cls, sep, mask, and unk where it has one.

    Raises:
        ValueError: of one line that begins with `where`: the text is no tokenizer, a role has no token, two roles have
            the same, or the post-processor has a template that rows cannot have.
    """

    def __init__(self, text: str, special_tokens: dict[str, str], where: str | Path) -> None:
        self.where = where
        self._content = parse(text, where)
        self.entries = entries_of(self._content)
        """Entries in id order; an id that no token has is an empty text."""
        ids = {entry: index for index, entry in enumerate(self.entries)}
        if missing := [token for token in special_tokens.values() if token not in ids]:
            raise ValueError(f"{where}: no entry {', '.join(missing)}, which the settings name as special")
        self.special_tokens = {role: special_tokens[role] for role in ROLES if role in special_tokens}
        self._special_ids = {role: ids[token] for role, token in self.special_tokens.items()}
        if missing := [role for role in REQUIRED_ROLES if role not in self.special_tokens]:
            raise ValueError(f"{where}: no {' and no '.join(missing)} token; required: {', '.join(REQUIRED_ROLES)}")
        if len(set(self.special_tokens.values())) < len(self.special_tokens):
            raise ValueError(f"{where}: special tokens {self.special_tokens}; they must differ")
        template = RowTemplate.of(self._content, self._special_ids["pad"], where)
        around = (self._special_ids["cls"], self._special_ids["sep"])
        if template is None or (template.cls_id, template.sep_id) != around:
            added = "nothing" if template is None else f"ids {template.cls_id} and {template.sep_id}"
            raise ValueError(
                f"{where}: the post-processor puts {added} around a text; the settings name {around[0]} (cls) and"
                f" {around[1]} (sep)"
            )
        self.template = template
        """What a row has besides its texts."""

    @classmethod
    def load(cls, folder: Path) -> FastTokenizer:
        """Read what `save` wrote; a missing or damaged file is a ValueError."""
        settings = _read_json(folder / TOKENIZER_CONFIG)
        tokens = {role: settings[f"{role}_token"] for role in ROLES if isinstance(settings.get(f"{role}_token"), str)}
        return cls(read_text(folder / TOKENIZER), tokens, folder / TOKENIZER)

    @classmethod
    def of_shards(cls, folder: Path, manifest: Manifest) -> FastTokenizer:
        """Read a folder's tokenizer, which must be the one that made the shards of a manifest, else a ValueError."""
        tokenizer, expected = cls.load(folder), manifest.attributes.tokenizer_hash
        if tokenizer.tokenizer_hash != expected:
            raise ValueError(
                f"{folder / TOKENIZER}: not the tokenizer of the shards: SHA-256 {tokenizer.tokenizer_hash[:12]}…,"
                f" expected {expected[:12]}…"
            )
        if tokenizer.special_ids() != manifest.special_tokens:
            raise ValueError(
                f"{folder / TOKENIZER_CONFIG}: special tokens {tokenizer.special_ids()}; the manifest has"
                f" {manifest.special_tokens}"
            )
        return tokenizer

    def save(self, folder: Path, model_max_length: int | None = None, has_types: bool = True) -> None:
        """Write the files that `AutoTokenizer` reads; `tokenizer.json` comes last.

        Without `has_types`, the model takes no token types. `model_max_length` is in tokens.
        """
        tokens = {f"{role}_token": token for role, token in self.special_tokens.items()}
        types = ["token_type_ids"] if has_types and self.template.segment_b_type else []
        settings = {
            # This class uses tokenizer.json unchanged for every model type.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", *types, "attention_mask"],
            "clean_up_tokenization_spaces": self.kind == "WordPiece",
            # Before version 5 of transformers, the class overwrites the value in tokenizer.json with this one.
            "add_prefix_space": bool((self._content["pre_tokenizer"] or {}).get("add_prefix_space", False)),
            **({} if model_max_length is None else {"model_max_length": model_max_length}),
            **tokens,
        }
        for name, value in ((TOKENIZER_CONFIG, settings), (SPECIAL_TOKENS_MAP, tokens), (TOKENIZER, self._content)):
            write_atomically(folder / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def special_ids(self) -> dict[str, int]:
        """Return the ids of pad, unk (where there is one), cls, sep and mask."""
        return dict(self._special_ids)

    @property
    def hash(self) -> str:
        """SHA-256 of the entries, as stored in shards."""
        return vocabulary_hash(list(self.entries))

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer, without truncation and padding."""
        return _from_json(self._content, self.where)

    @property
    def tokenizer_hash(self) -> str:
        """SHA-256 of the content of `tokenizer.json`; see `content_hash`."""
        return content_hash(self._content)

    @functools.cached_property
    def is_continuation(self) -> NDArray[np.bool_]:
        """Bool `[entries]`: whether the entry continues a word."""
        return continues_word(self._content, self.entries)

    @property
    def other_special_ids(self) -> tuple[int, ...]:
        """Ids that are never masked and never a replacement, besides those with a role: special tokens and gaps."""
        special = {token["id"] for token in self._content["added_tokens"] if token.get("special")}
        special |= {index for index, entry in enumerate(self.entries) if not entry}
        return tuple(sorted(special - set(self._special_ids.values())))

    @property
    def kind(self) -> str:
        """`WordPiece`, `BPE`, `Unigram` or another type of model of the library."""
        return str(self._content["model"].get("type"))

    @functools.cached_property
    def casing(self) -> str:
        """`uncased` where the normalizer lowers capitals, else `cased`."""
        return "uncased" if "a" in self._normalized("A") else "cased"

    @functools.cached_property
    def keeps_accents(self) -> bool:
        """Whether the normalizer keeps the accent of é."""
        return self._normalized("é").strip() != "e"

    def _normalized(self, text: str) -> str:
        normalizer = self.tokenizer().normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    @property
    def splits_at_sentences(self) -> bool:
        """Whether the ids of a document are those of its sentences, one after another.

        BERT's pre-tokenizer cuts at blanks and at punctuation marks, and a sentence ends at one of them.
        """
        parts = [(self._content[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer")]
        only_special = all(token.get("special") for token in self._content["added_tokens"])
        return parts == ["BertNormalizer", "BertPreTokenizer"] and self.kind == "WordPiece" and only_special


def read_text(path: Path) -> str:
    """Return the text of a tokenizer's file; one that is missing or not UTF-8 is a ValueError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error


def parse(text: str, where: str | Path) -> dict[str, Any]:
    """Return the content of a `tokenizer.json` that the library can load, without truncation and padding."""
    try:
        content = json.loads(text)
        content = {**content, "truncation": None, "padding": None}
        content |= {part: content.get(part) for part in _PARTS}
        content.setdefault("added_tokens", [])
        entries_of(content)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{where}: not a tokenizer.json ({' '.join(str(error).split())[:200]})") from error
    return content


def entries_of(content: dict[str, Any]) -> tuple[str, ...]:
    """Return the entries of a parsed `tokenizer.json` in id order; an id that no token has is an empty text."""
    vocabulary = content["model"]["vocab"]
    ids = (
        {piece: number for number, (piece, _) in enumerate(vocabulary)} if isinstance(vocabulary, list) else vocabulary
    )
    ids = {**ids, **{token["content"]: token["id"] for token in content["added_tokens"]}}
    size = max(ids.values()) + 1
    if size > LARGEST_VOCABULARY:
        raise ValueError(f"ids up to {size - 1}; a vocabulary may have {LARGEST_VOCABULARY} entries at most")
    entries = [""] * size
    for entry, identity in ids.items():
        entries[identity] = entry
    return tuple(entries)


def content_hash(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a parsed `tokenizer.json`, whatever its layout, truncation and padding are."""
    content = {name: value for name, value in content.items() if name not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be a JSON object, is a {type(content).__name__}")
    return content


def _from_json(content: dict[str, Any], where: str | Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"{where}: not a tokenizer ({' '.join(str(error).split())[:200]})") from error
