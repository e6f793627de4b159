"""Where words begin, known from token ids alone: for each entry of a tokenizer, whether it continues a word.

Tokenizers mark words in their entries. WordPiece marks what continues a word (`##ing`). Byte-level BPE and
SentencePiece mark what begins one, with the space before it (`Ġthe`, `▁the`). The groups are those of transformers'
`DataCollatorForLanguageModeling(whole_word_mask=True)`, with these exceptions:

- In scripts without blanks between words (Chinese, Japanese, Thai, Khmer and others), where a whole sentence would be
  one word, each token is a word of its own. So is each token of a tokenizer without marks.
- A line feed begins a word. The bytes of a character that are tokens of their own are one word, or belong to one.
- A punctuation mark is a word in WordPiece, which does not mark it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_pld.data.tokenizer import SPELT_WITHOUT_BLANKS

BLANK = "▁"
"""SentencePiece's mark of a space."""
_CHINESE_OR_JAPANESE = re.compile(
    "[\u2e80-\u30ff\u3190-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]"
)
"""Ideographs and kana, with their punctuation."""
WRITTEN_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""SentencePiece's entry for a byte of a character that it does not know."""
_PRINTED_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


def continues_word(content: dict[str, Any], entries: Sequence[str]) -> NDArray[np.bool_]:
    """Return bool `[entries]` for a `tokenizer.json` with these entries, which are in id order."""
    model = content["model"]
    prefix = model.get("continuing_subword_prefix")
    kinds = kinds_of(content["normalizer"]) | kinds_of(content["pre_tokenizer"]) | kinds_of(content["decoder"])
    if model.get("type") == "WordPiece" or prefix:
        return _table(entries, lambda entry: entry.startswith(prefix or "##"))
    if "ByteLevel" in kinds:
        byte_of = bytes_of_printed_characters()
        return _table(entries, lambda entry: _continues(bytes(byte_of.get(character, 0x20) for character in entry)))
    if "Metaspace" in kinds or any(entry.startswith(BLANK) for entry in entries):
        return _table(entries, lambda entry: _continues(_sentencepiece_bytes(entry)))
    return np.zeros(len(entries), np.bool_)


def _table(entries: Sequence[str], rule: Callable[[str], bool]) -> NDArray[np.bool_]:
    return np.fromiter(map(rule, entries), np.bool_, count=len(entries))


def kinds_of(part: Any) -> set[str]:
    """Return the types of a normalizer, pre-tokenizer or decoder and of all its parts."""
    if isinstance(part, list):
        return set().union(*map(kinds_of, part))
    if not isinstance(part, dict):
        return set()
    return {str(part.get("type"))}.union(*(kinds_of(value) for value in part.values()))


def _continues(text: bytes) -> bool:
    """Return whether a token with these bytes, which may be a part of a character, continues a word."""
    if not text or text[0] in b" \t\r\n":
        return False
    if text[0] < 0xC0:  # a letter of ASCII, or a byte inside a character
        return True
    length = 2 if text[0] < 0xE0 else 3 if text[0] < 0xF0 else 4
    # Where a character is cut, its script is that of the first character with the same first bytes, if there is one.
    is_cut = len(text) < length
    character = text[:length].ljust(length, b"\x80").decode("utf-8", errors="ignore")[:1]
    if not character:
        return not is_cut
    if unicodedata.category(character).startswith("M"):
        return True
    is_unspaced = _CHINESE_OR_JAPANESE.match(character) or SPELT_WITHOUT_BLANKS.match(character)
    return not is_unspaced and (is_cut or not character.isspace())


def _sentencepiece_bytes(entry: str) -> bytes:
    byte = WRITTEN_BYTE.fullmatch(entry)
    return bytes([int(byte[1], 16)]) if byte else entry.replace(BLANK, " ").encode("utf-8", "replace")


def bytes_of_printed_characters() -> dict[str, int]:
    """Map the characters with which byte-level BPE writes bytes to the bytes."""
    others = [byte for byte in range(256) if byte not in _PRINTED_BYTES]
    printed = {chr(byte): byte for byte in _PRINTED_BYTES}
    return printed | {chr(256 + number): byte for number, byte in enumerate(others)}
