"""Selects the prose of an article: paragraphs, and list entries that are sentences."""

from __future__ import annotations

import html
import re

from data_prep.sources.mediawiki.wiki_words import LIST_TITLE, SECTIONS_WITHOUT_PROSE
from data_prep.text.left_out import LeftOut
from data_prep.text.scripts import count_words

LONGEST_HEADING_WORDS = 6
FEWEST_WORDS_OF_A_SENTENCE = 12
"""Fewest words of a list entry that counts as a sentence although its script (Thai, Lao) has no full stop."""

HEADING = "heading"
LISTED = "list entry or table row that is no sentence"
SECTION_WITHOUT_PROSE = "section without prose (references, links, …)"
SHORT = f"paragraph of at most {LONGEST_HEADING_WORDS} words"
MARKUP = "remains of markup"
INTRODUCTION = "clause that introduces a list"
TITLE = "title line"
LIST = "list"

_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")
_ENDLESS_NUMBER = re.compile(r"&#[0-9]{1000,};?")
_BULLETS = frozenset("|!*#:;•·–—=-・※")
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_EMPTY_BRACKETS = re.compile(r"""[(\[]["'\s;,:/–-]*[)\]]|[（［]["'\s;,:/–；，、：。-]*[）］]""")
_OPENING = re.compile(r"\((?:\s*[;,:])+\s*|\(\s+")
_CLOSING = re.compile(r"(?<![\s;,])[\s;,]*\s\)|[;,]\)")
_WIDE_OPENING, _WIDE_CLOSING = re.compile(r"（[\s；，、：]+"), re.compile(r"(?<![\s；，、：])[\s；，、：]+）")
_SPACE_BEFORE = re.compile(r"(?<! ) +([,;:.])(?=\s|$)")
FEWEST_LISTED_CHARACTERS = 200
SMALLEST_PROSE_SHARE = 0.1
"""Smallest share of prose in the prose and lists of an article; with a smaller share the article is a list."""
TABLE_MARKUP_RATIO = 4
"""Characters of a table's wikitext per visible character, approximately."""
_LIST_MARKS = "*#:;"
_STOPS = ".!?…।॥۔؟።፧။។៕།༎։"
"""Ends of sentences before a space, in scripts with blanks; those of Chinese and Japanese need none."""
_SENTENCE_END = re.compile(rf"[{_STOPS}。！？．｡][\"'”’»)\]」』）》]*$")
_LAST_SENTENCE_END = re.compile(rf"[{_STOPS}][\"”’»)]*(?=\s)|[。！？．｡][\"”’»)」』）》]*")
_SENTENCE_START = re.compile(r"[\"'“‘«(「『（《]*[^\W_a-z]")
_WITHOUT_FULL_STOP = re.compile(r"[\u0e01-\u0e4f\u0e81-\u0ecf][\"'”’»)\]]*$")
_CITATION = re.compile(
    r"\bISBN\b|\bISSN\b|\bpp?\. ?\d|\bdoi:|\bRetrieved\b|\bVol\. ?\d|^[^.]{2,60}\((?:\w+ )?\d{4}\)[.,:]|"
    r"\bPress[,.:]? ?\d{4}\b"
)
_EMPTY_QUALIFIER = re.compile(
    r"\(\s*(?:(?:IPA|pronounced|pronunciation|listen|or|in full)\b\s*)?:?\s*(?=[;,)])[;,]?\s*", re.IGNORECASE
)
_BEFORE_CLOSING = re.compile(r"[;,]\s*(?:IPA|pronounced|or|listen)?\s*:?\s*(?=\))", re.IGNORECASE)
_DOUBLED_MARK = re.compile(r"(?<![;,])(?<![;,] )([;,])(?:\s*[;,])+(?=\s|$)")
_MARK_BEFORE_STOP = re.compile(r"[;,]\s*(?=\.(?:\s|$))")
_CONTROL = re.compile(
    r"\[\[|\]\]|\{\{+|\}\}+|'''+|^\{\||\|\}$|</?(?:ref|nowiki|br|div|span)\b[^<>]{0,200}>", re.MULTILINE | re.IGNORECASE
)
_CONTROL_MARKS = ("[[", "]]", "{{", "}}", "'''", "{|", "|}", "<")


def without_entities(text: str) -> str:
    """Resolve HTML's character references; a number of thousands of digits names no character."""
    return html.unescape(_ENDLESS_NUMBER.sub("\ufffd", text)) if "&" in text else text


def prose_of_article(text: str, title: str) -> tuple[str, LeftOut]:
    """Return the paragraphs of an article in the output of an extractor, and what was left out.

    The title line, section headings and list entries are removed (lines of at most six words, lines that begin with a
    bullet or end with a colon, tables, image links). Traces of templates are repaired: `( ; born 1950)` becomes
    `(born 1950)`, and `()` is removed.
    """
    lines: list[str] = []
    left_out = LeftOut()
    text = without_entities(text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    for line in text.split("\n"):
        line = line.strip()
        if reason := TITLE if line == title else why_no_prose(line):
            left_out.add(reason, line)
        elif line:
            lines.append(repair_line(line))
    return "\n".join(lines), left_out


def why_no_prose(line: str) -> str | None:
    """Return why a line is no running text: at most six words, a list entry, a table or a link; None if it is."""
    if not line:
        return None
    if line[0] in _BULLETS:
        return LISTED
    if line[-1] in ":：":
        return INTRODUCTION
    if "[[" in line or "{|" in line or "|}" in line or ("__" in line and _MAGIC_WORD.search(line)):
        return MARKUP
    if len(line.split(None, LONGEST_HEADING_WORDS)) > LONGEST_HEADING_WORDS:
        return None
    return None if count_words(line) > LONGEST_HEADING_WORDS else SHORT


def repair_line(line: str) -> str:
    """Repair a line from which templates were removed: empty brackets, doubled punctuation."""
    if "(" in line or "[" in line:
        line = _EMPTY_BRACKETS.sub("", line)
        line = _OPENING.sub("(", line)
        if " )" in line or ",)" in line or ";)" in line:
            line = _CLOSING.sub(")", line)
    if "（" in line:
        line = _WIDE_CLOSING.sub("）", _WIDE_OPENING.sub("（", _EMPTY_BRACKETS.sub("", line)))
    if " ," in line or " ;" in line or " :" in line or " ." in line:
        line = _SPACE_BEFORE.sub(r"\1", line)
    return line


def prose_of_lines(text: str, title: str, table_characters: int) -> tuple[str, bool, LeftOut]:
    """Return the prose of an article, whether the article is a list, and what was left out.

    The text is wikitext without templates, tables, links and tags, with entities resolved; the `table_characters` that
    were removed in tables count as list. Consecutive lines form a paragraph. Headings are removed, and sections such as
    References with all their content. List entries are kept only if they are sentences. Paragraphs of at most six words
    are removed (see `why_no_prose`). If the article is a list, all its text counts as left out.
    """
    left_out = LeftOut()
    if LIST_TITLE.search(title):
        left_out.add(LIST, text)
        return "", True, left_out
    if any(mark in text for mark in _CONTROL_MARKS):
        text = _CONTROL.sub("", text)
    paragraphs: list[str] = []
    opened: list[str] = []
    skipped_level = 0
    listed = table_characters // TABLE_MARKUP_RATIO

    def keep_prose(line: str) -> None:
        tidy = tidy_paragraph(line)
        reason = why_no_prose(tidy) if tidy else INTRODUCTION
        if reason:
            left_out.add(reason, line)
        else:
            paragraphs.append(tidy)

    def close() -> None:
        if opened:
            keep_prose(" ".join(opened))
            opened.clear()

    for line in text.split("\n"):
        stripped = line.strip()
        if not stripped:
            close()
            continue
        first = stripped[0]
        if first == "=" and (level := _heading_level(stripped)):
            close()
            if not skipped_level or level <= skipped_level:
                heading = stripped.strip("= \t").rstrip(":：").lower()
                skipped_level = level if heading in SECTIONS_WITHOUT_PROSE else 0
            left_out.add(SECTION_WITHOUT_PROSE if skipped_level else HEADING, stripped.strip("= \t"))
        elif skipped_level:
            left_out.add(SECTION_WITHOUT_PROSE, stripped)
        elif first in _LIST_MARKS or line[0] == " ":
            close()
            if first in _LIST_MARKS:
                listed += len(stripped)
            entry = stripped.lstrip(_LIST_MARKS + " ")
            if is_sentence(entry):
                keep_prose(entry)
            else:
                left_out.add(LISTED, entry)
        elif first in "|!" or stripped.startswith("----"):
            close()
            listed += len(stripped)
            left_out.add(LISTED, stripped)
        else:
            opened.append(stripped)
    close()
    prose = "\n".join(paragraphs)
    is_list = listed >= FEWEST_LISTED_CHARACTERS and len(prose) < SMALLEST_PROSE_SHARE * (len(prose) + listed)
    if is_list:
        left_out.add(LIST, prose)
    return prose, is_list, left_out


def _heading_level(line: str) -> int:
    """Return the number of `=` on both sides; 0 if the line is not a heading."""
    left = len(line) - len(line.lstrip("="))
    right = len(line) - len(line.rstrip("="))
    return min(left, right, 6) if len(line) > left else 0


def is_sentence(entry: str) -> bool:
    """Return whether a list entry is a sentence: it begins with a capital, ends with a full stop, and cites no book.

    In Thai and Lao, which have neither, a long entry is a sentence.
    """
    return (
        (
            _SENTENCE_END.search(entry[-8:]) is not None
            or (_WITHOUT_FULL_STOP.search(entry[-8:]) is not None and count_words(entry) >= FEWEST_WORDS_OF_A_SENTENCE)
        )
        and _SENTENCE_START.match(entry) is not None
        and _CITATION.search(entry[:2000]) is None
    )


def tidy_paragraph(line: str) -> str:
    """Join a paragraph into one line, repair traces of templates, and remove a last clause that introduces a list."""
    line = " ".join(line.split())
    if "(" in line:
        line = _EMPTY_QUALIFIER.sub("(", line)
        line = _BEFORE_CLOSING.sub("", line)
    line = _DOUBLED_MARK.sub(r"\1", repair_line(line))
    if ",." in line or ", ." in line or ";." in line or "; ." in line:
        line = _MARK_BEFORE_STOP.sub("", line)
    line = " ".join(line.split())
    if line.endswith((":", "：")):
        ends = [match.end() for match in _LAST_SENTENCE_END.finditer(line)]
        line = line[: ends[-1]] if ends else ""
    return line
