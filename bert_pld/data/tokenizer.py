"""BERT's tokenizer around the entries of a WordPiece vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
CONTINUATION = "##"


def read_entries(path: Path) -> list[str]:
    """The entries of a `vocab.txt` in id order.

    Raises:
        ValueError: the file is missing or not UTF-8.
    """
    try:
        entries = path.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable vocabulary ({error})") from error
    if entries[-1] == "":
        entries.pop()
    return entries


def count_capitals(entries: Sequence[str]) -> int:
    """How many entries have capital letters, special tokens aside: none, or next to none, where it is uncased."""
    return sum(entry != entry.lower() for entry in entries if not entry.startswith("["))


def bert_normalizer(cased: bool) -> BertNormalizer:
    """Clean text, spaces around CJK characters; lower case and accents stripped unless cased."""
    return BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=not cased)


def bert_tokenizer(entries: Sequence[str], cased: bool) -> Tokenizer:
    """BERT's tokenizer over these entries, which include the five special tokens."""
    tokenizer = Tokenizer(
        WordPiece({entry: index for index, entry in enumerate(entries)}, unk_token=SPECIAL_TOKENS["unk"])
    )
    tokenizer.normalizer = bert_normalizer(cased)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder(prefix=CONTINUATION)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, entries.index(token)) for token in (SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"])],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    return tokenizer
