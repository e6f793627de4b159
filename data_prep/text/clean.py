"""Cleaning: Unicode normalization, white space, and the reasons to drop a document that is not prose."""

from __future__ import annotations

import re
import unicodedata

from data_prep.text.scripts import comparable_length, with_visible_breaks
from data_prep.text.sentences import has_word

FEWEST_CHARACTERS = 64
SMALLEST_PROSE_FRACTION = 0.7

TOO_SHORT = f"shorter than {FEWEST_CHARACTERS} characters"
NOT_PROSE = f"not prose (under {SMALLEST_PROSE_FRACTION:.0%} letters and spaces)"
NO_WORDS = "without a letter or digit"

# Controls, format characters (zero-width spaces, soft hyphens, byte order marks, direction marks), surrogates,
# private use, and the replacement character. The joiners U+200C and U+200D are kept: some scripts need them in words.
_UNWANTED = re.compile(
    "[\u0000-\u0008\u000e-\u001b\u001f\u007f-\u0084\u0086-\u009f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\uffff\ud800-\udfff\ue000-\uf8ff]"
)
MOST_MARKS = 30
"""Longest run of combining marks; U+034F interrupts a longer one (Unicode's stream-safe text format)."""
_MARKS = re.compile(rf"[^\x00-\x7f\w\s]{{{MOST_MARKS + 1},}}")
_NOT_LETTER_OR_SPACE = bytes(set(range(128)) - set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ \n"))


def clean_text(text: str) -> str:
    """Return text in normal form C, without unwanted characters, white space collapsed; each paragraph stays a line.

    A zero-width space between words of a script without blanks (Thai, Khmer, …) becomes a space.
    """
    if not text.isascii() or not text.replace("\n", " ").isprintable():
        text = _MARKS.sub(_interrupted, _UNWANTED.sub("", with_visible_breaks(text)))
    lines = (" ".join(line.split()) for line in unicodedata.normalize("NFC", text).splitlines())
    return "\n".join(line for line in lines if line)


def _interrupted(run: re.Match[str]) -> str:
    """Interrupt long runs of combining marks, because the time to order the marks grows with the square of the run."""
    out: list[str] = []
    marks = 0
    for character in run[0]:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks > MOST_MARKS:
            out.append("\u034f")
            marks = 1
        out.append(character)
    return "".join(out)


def drop_reason(text: str) -> str | None:
    """Return why a cleaned text is dropped, or None to keep it.

    Letters of any script count as letters, and so does every other character outside ASCII; but a text of ornaments or
    emoji alone has no sentences. A text in Chinese, Japanese or Korean says as much in fewer characters, so they count
    more (`comparable_length`).
    """
    if len(text) < FEWEST_CHARACTERS and comparable_length(text) < FEWEST_CHARACTERS:
        return TOO_SHORT
    data = text.encode("utf-8")
    if len(data.translate(None, _NOT_LETTER_OR_SPACE)) < SMALLEST_PROSE_FRACTION * len(data):
        return NOT_PROSE
    return None if has_word(text) else NO_WORDS
