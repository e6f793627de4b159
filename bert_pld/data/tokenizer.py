"""BERT's WordPiece tokenizer: its special tokens, its template, and how to build it from a vocabulary."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import TemplateProcessing

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
CONTINUATION = "##"
"""Prefix of a token that continues a word."""
LONGEST_WORD_CHARACTERS = 100
"""WordPiece makes a longer word a single [UNK]."""
SIGNIFICANT_SHARE = 0.01
"""A vocabulary belongs to a kind of script if more than this share of its entries shows it."""
SPELT_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaadf]"
)
"""Thai, Lao, Myanmar, Khmer, Tai, Balinese and Javanese, where a whole clause stands between two blanks."""
_DIACRITICS = ((0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF), (0x2DE0, 0x2DFF), (0xA66F, 0xA69F))
"""Blocks of accents of Latin, Greek and Cyrillic letters and of symbols."""


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


@functools.lru_cache(maxsize=1)
def changed_without_accents() -> re.Pattern[str]:
    """Return a pattern of the characters of scripts without capitals that BERT's removal of accents changes.

    It removes vowel signs of Indic and South East Asian scripts, dots of kana (が → か) and the hamza of Arabic
    letters, and takes Hangul syllables apart. Accents of Latin, Greek and Cyrillic letters do not match.
    """
    changed = ["\uac00-\ud7a3"]
    for point in [*range(0x0590, 0xAC00), *range(0xD7A4, 0xD800)]:
        character = chr(point)
        category = unicodedata.category(character)
        if category == "Lo":
            if unicodedata.normalize("NFD", character) != character:
                changed.append(character)
        elif category == "Mn" and not any(first <= point <= last for first, last in _DIACRITICS):
            changed.append(character)
    return re.compile(f"[{''.join(changed)}]")


def keeps_accents(entries: Sequence[str]) -> bool:
    """Return whether an uncased vocabulary was made for text with the marks of a script without capitals.

    Entries with such marks could never occur if the marks were removed.
    """
    return _share(changed_without_accents(), entries) > SIGNIFICANT_SHARE


def _share(pattern: re.Pattern[str], entries: Sequence[str]) -> float:
    return sum(pattern.search(entry) is not None for entry in entries) / max(len(entries), 1)


def bert_normalizer(cased: bool, keep_accents: bool = False) -> BertNormalizer:
    """Return BERT's normalizer: clean text, spaces around CJK characters; unless `cased`, lower case and no accents.

    `keep_accents` lowers capitals only. In Hugging Face's classes it is `strip_accents=False`.
    """
    strip_accents = False if keep_accents and not cased else None
    return BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=not cased)


def bert_tokenizer(entries: Sequence[str], cased: bool, keep_accents: bool | None = None) -> Tokenizer:
    """Return BERT's tokenizer for a vocabulary in id order; `cased` keeps upper case and accents.

    `keep_accents` keeps accents in lower case too; None decides by the entries (`keeps_accents`). A vocabulary of a
    script such as Thai cuts what stands between two blanks at 100 characters; BERT would take it for one unknown word.
    """
    ids = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer = bert_normalizer(cased, keeps_accents(entries) if keep_accents is None else keep_accents)
    splitter: PreTokenizer = BertPreTokenizer()
    if _share(SPELT_WITHOUT_BLANKS, entries) > SIGNIFICANT_SHARE:
        at_most = Regex(rf"[\s\S]{{1,{LONGEST_WORD_CHARACTERS}}}")
        splitter = PreTokenizers([splitter, Split(at_most, behavior="isolated")])
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = WordPieceDecoder(prefix=CONTINUATION)
    tokenizer.post_processor = bert_template({token: entries.index(token) for token in SPECIAL_TOKENS.values()})
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    return tokenizer


def bert_template(
    ids: Mapping[str, int], cls: str = SPECIAL_TOKENS["cls"], sep: str = SPECIAL_TOKENS["sep"]
) -> TemplateProcessing:
    """Return the post-processor that adds `[CLS]` and `[SEP]` (or others) as BERT does; `ids` has them by token."""
    return TemplateProcessing(
        single=[cls, "$A", sep],
        pair=[cls, "$A", sep, "$B:1", f"{sep}:1"],
        special_tokens=[(token, ids[token]) for token in (cls, sep)],
    )
