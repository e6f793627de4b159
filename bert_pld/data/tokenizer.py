"""BERT's WordPiece tokenizer: its special tokens, its template, and how to build it from a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
CONTINUATION = "##"
"""Prefix of a token that continues a word."""


def read_entries(path: Path) -> list[str]:
    """Return the entries of a `vocab.txt` in id order; a missing or unreadable file is a ValueError.

    Lines may end as on Windows, and the file may begin with a byte order mark: neither belongs to an entry.
    """
    try:
        entries = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a readable vocabulary (not UTF-8 at byte {error.start})") from error
    except OSError as error:
        raise ValueError(f"{path}: not a readable vocabulary ({error.strerror})") from error
    if entries[-1] == "":
        entries.pop()
    return entries


def count_capitals(entries: Sequence[str]) -> int:
    """Count the entries with capital letters, without special tokens; an uncased vocabulary has almost none."""
    return sum(entry != entry.lower() for entry in entries if not entry.startswith("["))


def bert_normalizer(cased: bool) -> BertNormalizer:
    """Return BERT's normalizer: clean text, spaces around CJK characters; lower case and no accents unless `cased`."""
    return BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=not cased)


def bert_tokenizer(entries: Sequence[str], cased: bool) -> Tokenizer:
    """Return BERT's tokenizer for a vocabulary in id order; `cased` keeps upper case and accents."""
    ids = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer = bert_normalizer(cased)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder(prefix=CONTINUATION)
    tokenizer.post_processor = bert_template({token: entries.index(token) for token in SPECIAL_TOKENS.values()})
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    return tokenizer


def bert_template(ids: Mapping[str, int]) -> TemplateProcessing:
    """Return the post-processor that adds `[CLS]` and `[SEP]` as BERT does; `ids` has them by token."""
    cls, sep = SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"]
    return TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, ids[token]) for token in (cls, sep)],
    )
