"""What the rules must know about scripts: which have no blanks between words or no capitals, and how dense they are.

Rules that were made for English count words between blanks, look for capitals, or count characters. The functions here
give the same numbers for text in Latin script, and comparable ones for every other script.
"""

from __future__ import annotations

import re
import unicodedata

from bert_pld.data.tokenizer import changed_without_accents

_DENSE_RANGES = (
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f"
    "\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48c\uf900-\ufaff\uff66-\uff9f"
)
"""Han, kana, Bopomofo and Yi: a character is a syllable or a word. Beyond U+FFFF, `re` would be fifty times slower."""
_BLOCKS = (
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F),
    (0xA980, 0xA9FF), (0xAA60, 0xAADF),
)  # fmt: skip
"""Thai, Lao, Tibetan, Myanmar, Khmer, Tai, Balinese, Javanese: letters and vowel signs; no blanks between words."""


def _members(*categories: str) -> str:
    points = (point for first, last in _BLOCKS for point in range(first, last + 1))
    return "".join(chr(point) for point in points if unicodedata.category(chr(point))[0] in categories)


_SPELT, _MARKS = _members("L", "M", "N"), _members("M")
_HANGUL = "\uac00-\ud7a3"
_DENSE_CHARACTER, _SPELT_CHARACTER = re.compile(f"[{_DENSE_RANGES}]"), re.compile(f"[{_SPELT}]")
_HANGUL_CHARACTER = re.compile(f"[{_HANGUL}]")
_WITHOUT_BLANKS = re.compile(f"[{_DENSE_RANGES}{_SPELT}]")
_UNIT = re.compile(f"[{_DENSE_RANGES}{_SPELT}][{_MARKS}\u3099\u309a]*|[^\\W_{_DENSE_RANGES}{_SPELT}]+")
_INVISIBLE_BREAK = re.compile(f"(?<=[{_SPELT}])\u200b+(?=\\w)|(?<=\\w)\u200b+(?=[{_SPELT}])")
_BETWEEN_DENSE = re.compile(f"(?<=[{_DENSE_RANGES}、。，！？：；」』）》])\n(?=[{_DENSE_RANGES}「『（《])")

DENSE_CHARACTERS_PER_WORD, SPELT_CHARACTERS_PER_WORD = 2, 5
SMALLEST_SHARE_WITHOUT_BLANKS = 0.2
"""With a smaller share of such characters, a document is compared by the words between its blanks."""


def count_words(line: str) -> int:
    """Return the number of words; in scripts without blanks, two characters (of Thai, Khmer, …: five) are a word."""
    if line.isascii() or not _WITHOUT_BLANKS.search(line):
        return len(line.split())
    dense, spelt = len(_DENSE_CHARACTER.findall(line)), len(_SPELT_CHARACTER.findall(line))
    others = sum(any(map(str.isalnum, word)) for word in _WITHOUT_BLANKS.sub(" ", line).split())
    return others + dense // DENSE_CHARACTERS_PER_WORD + spelt // SPELT_CHARACTERS_PER_WORD


def comparable_length(text: str) -> int:
    """Return the number of characters; one of Chinese or Japanese counts as three, a Korean syllable as two."""
    if text.isascii():
        return len(text)
    return len(text) + 2 * len(_DENSE_CHARACTER.findall(text)) + len(_HANGUL_CHARACTER.findall(text))


def display_width(line: str) -> int:
    """Return the number of columns that a line takes in a text file: two for a character of East Asia."""
    if line.isascii():
        return len(line)
    return len(line) + len(_DENSE_CHARACTER.findall(line)) + len(_HANGUL_CHARACTER.findall(line))


def units_without_blanks(text: str) -> list[str] | None:
    """Return the units of a text in a script without blanks, for comparing: characters with their marks; else None."""
    if text.isascii() or not _WITHOUT_BLANKS.search(text):
        return None
    if len(_WITHOUT_BLANKS.findall(text)) < SMALLEST_SHARE_WITHOUT_BLANKS * len(text):
        return None
    return _UNIT.findall(text)


def with_visible_breaks(text: str) -> str:
    """Replace U+200B between words of Thai, Khmer and other such scripts, which separates words there, by a space."""
    return _INVISIBLE_BREAK.sub(" ", text) if "\u200b" in text else text


def without_breaks_between_dense(text: str) -> str:
    """Remove line feeds between characters of Chinese or Japanese, where a space would not belong to the text."""
    return text if text.isascii() else _BETWEEN_DENSE.sub("", text)


def has_capitals_only(text: str) -> bool:
    """Return whether all letters are capitals: true of a text without letters, false in a script without capitals."""
    if text.upper() != text:
        return False
    return text.isascii() or not any(unicodedata.category(mark) == "Lo" and not mark.islower() for mark in text)


def is_lower_case(word: str) -> bool:
    """Return whether a word is in lower case, in a script that would write a capital at the start of a sentence."""
    return word.islower() and not "\u10d0" <= word[0] <= "\u10ff"  # Georgian has small letters, but no such capitals


def count_changed_by_accents(text: str) -> int:
    """Count the characters of scripts without capitals that BERT's removal of accents would remove or replace."""
    return 0 if text.isascii() else len(changed_without_accents().findall(text))
