"""Sentence segmentation: the library `sentencex` (rules and abbreviations by language, in Rust) with corrections.

The library never splits text between quotation marks, so it gets the text with the marks replaced by spaces. Wrong
splits are then joined by rules on the text before and after the split, and a sentence also ends at an ellipsis that a
capital follows. docs/data_preparation.md lists the accuracy with and without these corrections.
"""

from __future__ import annotations

import functools
import itertools
import re

import sentencex

from data_prep.text.scripts import is_lower_case

_LANGUAGES = "am ar bg bn ca da de el en es fi fr gu he hi hy it ja kk kn ml mr my nl pa pl pt ru sk ta te uk ur zh"
LANGUAGES = tuple(_LANGUAGES.split())
"""ISO 639-1 codes for which the library has rules. For any other code it silently uses the English rules."""

_QUOTES = "“”„‟«»‹›"
_NOT_ABBREVIATIONS = tuple((f" {word}. ", f" {'x' * len(word)}. ") for word in ("me", "no", "may", "ill", "miss"))
"""English words that the library treats as abbreviations (Maine, May, number, Illinois, …), mostly wrongly."""
_CLOSING = re.compile(r"(?: »(?= |$)|[\"'”’»›“‘«‹)\]])*")
_TRAILING_MARKS = ".…\"'”’»›“‘«‹)]–—-" + "".join(filter(str.isspace, map(chr, range(0x3001))))
_WORD = re.compile(r"[^\W_]")

WINDOW_CHARACTERS = 1 << 13
OVERLAP_CHARACTERS = 1 << 11
"""Longest text in brackets that is kept together in a text that is split window by window."""
MOST_SLOW_MARKS = 1000
_SLOW_MARKS = re.compile(
    r"[!?։؝-؟۔܀-܂߹।॥၊။።፧፨᙮᠃᠉‼‽⁇-⁉⸮⸼。﹒﹖﹗！．？｡\U00010000-\U0001ffff](?=\S)|[「」『』《》〈〉“]|''"
)

_MARKER = re.compile(r"\W*(?:\d{1,3}|[IVXLC]{1,6}|[A-Za-z])[.)]")
"""The number or letter of a list item as a whole sentence."""
_FUSED = re.compile(r"[a-z]{2}\.(?:[A-Z][a-z]+|[AI])[ ,’']")
"""The end of a sentence without a space after it, unlike the stops in `Node.js` and `U.S.A`."""
_ELLIPSIS = re.compile(r"(?:(?<!\.)\.\.\.+|…\.?|(?<!\. )\.(?: \.){2,})[\"'”’»›)]*\s+(?=[\"'“‘«‹(]*[^\W\d_a-z])")

_OTHER_STOPS = re.compile(r"(?<![។៕།༎])[។៕།༎]+[\"'”’»)\]]*(?!\s*[។៕།༎])")
"""Full stops of Khmer and Tibetan, which the library does not know."""

_ENGLISH_TITLE_ENDS = frozenset((" Ms.", "(Ms.", '"Ms.', "“Ms.", "eut.", "mdr.", "evd."))
"""Last four characters of Ms., Lieut., Comdr. and Revd., which the library does not know."""
_NUMBERED = "no nos vol vols Vol Vols ed eds Ed Eds Ch Chap ch chap approx est Figs Ex Matt Lk Cor"
_DAYS = "Mon Tue Wed Thu Fri Sat Sun"
_ENGLISH_BEFORE_NUMBER = frozenset(f"{word}." for word in f"{_NUMBERED} {_DAYS}".split())
_SPEAKER = r"(?:I|the [a-z]+|(?:M(?:r|rs|s|iss)\.? |Dr\.? |Sir |Lady |Lord )?[A-Z][a-z]+(?: [A-Z][a-z]+)?)"
_SAYING = (
    r"(?:said|says|say|cried|cries|asked|asks|replied|answered|exclaimed|shouted|whispered|murmured|muttered|sighed"
    r"|repeated|returned|responded|remarked|called|demanded|inquired|enquired|thought|added)"
)
_NO_SPEAKER = r"(?!(?:And|But|Then|So|Yet|When|As|What|Who|Thus|Here|Now) )"
_ENGLISH_SPEAKER = re.compile(rf"{_NO_SPEAKER}{_SPEAKER} (?:\w+ly )?{_SAYING}\b")


def split_sentences(text: str, language: str = "en") -> list[str]:
    """Return the sentences of a text, in order, without surrounding white space; a line feed always ends a sentence.

    A sentence without a letter or digit is left out. The language, one of `LANGUAGES`, selects the rules.
    """
    return [piece for piece in split_pieces(text, language) if has_word(piece)]


def has_word(piece: str) -> bool:
    """Return whether a piece of text holds a letter or digit."""
    return piece[:1].isalnum() or _WORD.search(piece) is not None


def split_pieces(text: str, language: str) -> list[str]:
    """Return what `split_sentences` does, with the pieces that hold no letter or digit."""
    check_language(language)
    bare = _without_quotes(text)
    if language == "en":
        for word, mask in _NOT_ABBREVIATIONS:
            bare = bare.replace(word, mask)
    paragraphs = zip(text.split("\n"), bare.split("\n"), strict=True) if "\n" in text else [(text, bare)]
    return [
        stripped
        for paragraph, without_quotes in paragraphs
        for sentence in _split_paragraph(paragraph, without_quotes, language)
        if (stripped := sentence.strip())
    ]


def check_language(language: str) -> None:
    """Raise ValueError if there are no sentence rules for a language."""
    if language not in LANGUAGES:
        raise ValueError(
            f"--language {language}: no sentence rules for this language; allowed: {', '.join(LANGUAGES)}"
            " (for another language, choose the one with the most similar punctuation and abbreviations)"
        )


def _split_paragraph(paragraph: str, bare: str, language: str) -> list[str]:
    """Split a paragraph into pieces; `bare` is the paragraph with spaces in place of quotation marks."""
    proposed = _proposed_sentences(bare, language)
    words = _Words(paragraph)
    is_joined = _is_joined_in_english if language == "en" else _is_joined
    if len(proposed) == 1:
        sentences = [paragraph]
    else:
        sentences, start, end = [], 0, 0
        for piece in proposed[:-1]:
            cut = end + len(piece.rstrip())
            end += len(piece)
            if paragraph[cut] != " " or paragraph[cut + 1 : cut + 2] == "»":
                cut = _CLOSING.match(paragraph, cut).end()  # type: ignore[union-attr]
            if cut > start and not is_joined(paragraph, start, cut, words):
                sentences.append(paragraph[start:cut])
                start = cut
        sentences.append(paragraph[start:])
    if "..." in paragraph or "…" in paragraph or ". . ." in paragraph:
        sentences = [part for sentence in sentences for part in _split_after(_ELLIPSIS, sentence)]
    if not paragraph.isascii() and _OTHER_STOPS.search(paragraph):
        sentences = [part for sentence in sentences for part in _split_after(_OTHER_STOPS, sentence)]
    return sentences


def _proposed_sentences(bare: str, language: str) -> list[str]:
    """Return the sentences that the library proposes, white space included.

    The library's time grows with the length of the text times the number of certain marks, so a long text with many of
    them is split window by window. A window ends in the next one: its last part may depend on what follows.
    """
    if len(bare) <= WINDOW_CHARACTERS or len(_SLOW_MARKS.findall(bare)) < MOST_SLOW_MARKS:
        return list(sentencex.segment(language, bare))
    ends, position = [0], 0
    while len(bare) - position > WINDOW_CHARACTERS:
        length, known = 0, len(ends)
        for piece in sentencex.segment(language, bare[position : position + WINDOW_CHARACTERS]):
            length += len(piece)
            if length > WINDOW_CHARACTERS - OVERLAP_CHARACTERS:
                break
            ends.append(position + length)
        position = ends[-1] if len(ends) > known else position + WINDOW_CHARACTERS - OVERLAP_CHARACTERS
    for piece in sentencex.segment(language, bare[position:]):
        position += len(piece)
        ends.append(position)
    return [bare[start:end] for start, end in itertools.pairwise(ends)]


def _without_quotes(text: str) -> str:
    """Replace each quotation mark by a space; keep apostrophes within words."""
    text = text.replace('"', " ")
    marks = "'"
    if not text.isascii():
        marks = "'’‘"
        for mark in _QUOTES:
            if mark in text:
                text = text.replace(mark, " ")
    for mark in marks:
        if mark in text:
            text = text.replace(f"{mark} ", "  ").replace(f" {mark}", "  ").replace(f"\n{mark}", "\n ")
            if text[0] == mark:
                text = f" {text[1:]}"
    return text


class _Words:
    """The words of a paragraph, asked for at ascending positions; all answers together read the paragraph once."""

    def __init__(self, paragraph: str) -> None:
        self._paragraph = paragraph
        self._first: re.Match[str] | None = None
        self._at_end = False

    def first_after(self, position: int) -> re.Match[str] | None:
        """Return the first letter or digit at `position` or later."""
        if not self._at_end and (self._first is None or self._first.start() < position):
            self._first = _WORD.search(self._paragraph, position)
            self._at_end = self._first is None
        return self._first

    @functools.cached_property
    def end_of_text(self) -> int:
        """Position after which there are only white space and marks that end a sentence."""
        return len(self._paragraph.rstrip(_TRAILING_MARKS))


def _is_joined(paragraph: str, start: int, cut: int, words: _Words) -> bool:
    """Return whether a proposed split is wrong: a sentence from `start` to `cut`, its closing marks included."""
    if paragraph[cut - 1] == "." and paragraph[cut : cut + 1].isalnum() and not _FUSED.match(paragraph, cut - 3):
        return True
    first = words.first_after(cut)
    if first is None:
        return cut >= words.end_of_text
    return is_lower_case(first.group()) or (
        cut - start < 12 and _MARKER.fullmatch(paragraph[start:cut].strip()) is not None
    )


def _is_joined_in_english(paragraph: str, start: int, cut: int, words: _Words) -> bool:
    last = paragraph[cut - 1]
    capital = paragraph[cut] == " " and "A" <= paragraph[cut + 1 : cut + 2] <= "Z" if cut < len(paragraph) else False
    if capital and last == "." and cut - start >= 12:
        return paragraph[cut - 4 : cut] in _ENGLISH_TITLE_ENDS
    if _is_joined(paragraph, start, cut, words):
        return True
    if last == ".":
        word = paragraph[max(cut - 8, start) : cut].rpartition(" ")[2]
        return word in _ENGLISH_BEFORE_NUMBER and paragraph[cut : cut + 2].strip().isdigit()
    if capital and last in "\"'”’" and paragraph[cut - 2] in "!?":
        return _ENGLISH_SPEAKER.match(paragraph, cut + 1) is not None
    return False


def _split_after(mark: re.Pattern[str], sentence: str) -> list[str]:
    parts, start = [], 0
    for found in mark.finditer(sentence):
        parts.append(sentence[start : found.end()])
        start = found.end()
    return [*parts, sentence[start:]]
