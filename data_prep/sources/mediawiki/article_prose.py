"""Selects the prose of an article: paragraphs, and list entries that are sentences."""

from __future__ import annotations

import html
import re

from data_prep.sources.mediawiki.wiki_words import LIST_TITLE, SECTIONS_WITHOUT_PROSE

LONGEST_HEADING_WORDS = 6

_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")
_BULLETS = frozenset("|!*#:;•·–—=-")
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_EMPTY_BRACKETS = re.compile(r"""[(\[]["'\s;,:/–-]*[)\]]""")
_OPENING = re.compile(r"\((?:\s*[;,:])+\s*|\(\s+")
_CLOSING = re.compile(r"(?:\s*[;,])*\s+\)|[;,]\)")
_SPACE_BEFORE = re.compile(r"[ ]+([,;:.])(?=\s|$)")
FEWEST_LISTED_CHARACTERS = 200
SMALLEST_PROSE_SHARE = 0.1
"""Smallest share of prose in the prose and lists of an article; with a smaller share the article is a list."""
TABLE_MARKUP_RATIO = 4
"""Characters of a table's wikitext per visible character, approximately."""
_LIST_MARKS = "*#:;"
_SENTENCE_END = re.compile(r"[.!?…。！？।۔][\"'”’»)\]]*$")
_LAST_SENTENCE_END = re.compile(r"[.!?…。！？][\"”’»)]*(?=\s|(?<=[。！？]))")
_SENTENCE_START = re.compile(r"[\"'“‘«(]*[^\W_a-z]")
_CITATION = re.compile(
    r"\bISBN\b|\bISSN\b|\bpp?\. ?\d|\bdoi:|\bRetrieved\b|\bVol\. ?\d|^[^.]{2,60}\((?:\w+ )?\d{4}\)[.,:]|"
    r"\bPress[,.:]? ?\d{4}\b"
)
_EMPTY_QUALIFIER = re.compile(
    r"\(\s*(?:(?:IPA|pronounced|pronunciation|listen|or|in full)\b\s*)?:?\s*(?=[;,)])[;,]?\s*", re.IGNORECASE
)
_BEFORE_CLOSING = re.compile(r"[;,]\s*(?:IPA|pronounced|or|listen)?\s*:?\s*(?=\))", re.IGNORECASE)
_DOUBLED_MARK = re.compile(r"([;,])(?:\s*[;,])+(?=\s|$)")
_MARK_BEFORE_STOP = re.compile(r"[;,]\s*(?=\.(?:\s|$))")
_CONTROL = re.compile(
    r"\[\[|\]\]|\{\{+|\}\}+|'''+|^\{\||\|\}$|</?(?:ref|nowiki|br|div|span)\b[^<>]{0,200}>", re.MULTILINE | re.IGNORECASE
)
_CONTROL_MARKS = ("[[", "]]", "{{", "}}", "'''", "{|", "|}", "<")


def prose_of_article(text: str, title: str) -> str:
    """Return the paragraphs of an article in the output of an extractor.

    The title line, section headings and list entries are removed (lines of at most six words, lines that begin with a
    bullet or end with a colon, tables, image links). Traces of templates are repaired: `( ; born 1950)` becomes
    `(born 1950)`, and `()` is removed.
    """
    lines = []
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    for line in text.split("\n"):
        line = line.strip()
        if line != title and is_prose(line):
            lines.append(repair_line(line))
    return "\n".join(lines)


def is_prose(line: str) -> bool:
    """Return whether a line is running text: more than six words, and no list entry, table or link."""
    if not line or line[0] in _BULLETS or line[-1] == ":":
        return False
    if "[[" in line or "{|" in line or "|}" in line or ("__" in line and _MAGIC_WORD.search(line)):
        return False
    return len(line.split(None, LONGEST_HEADING_WORDS)) > LONGEST_HEADING_WORDS


def repair_line(line: str) -> str:
    """Repair a line from which templates were removed: empty brackets, doubled punctuation."""
    if "(" in line or "[" in line:
        line = _EMPTY_BRACKETS.sub("", line)
        line = _OPENING.sub("(", line)
        if " )" in line or ",)" in line or ";)" in line:
            line = _CLOSING.sub(")", line)
    if " ," in line or " ;" in line or " :" in line or " ." in line:
        line = _SPACE_BEFORE.sub(r"\1", line)
    return line


def prose_of_lines(text: str, title: str, table_characters: int) -> tuple[str, bool]:
    """Return the prose of an article, and whether the article is a list.

    The text is wikitext without templates, tables, links and tags, with entities resolved; the `table_characters` that
    were removed in tables count as list. Consecutive lines form a paragraph. Headings are removed, and sections such as
    References with all their content. List entries are kept only if they are sentences. Paragraphs of at most six words
    are removed (see `is_prose`).
    """
    if LIST_TITLE.search(title):
        return "", True
    if any(mark in text for mark in _CONTROL_MARKS):
        text = _CONTROL.sub("", text)
    paragraphs: list[str] = []
    opened: list[str] = []
    skipped_level = 0
    listed = table_characters // TABLE_MARKUP_RATIO

    def close() -> None:
        if opened:
            if (line := tidy_paragraph(" ".join(opened))) and is_prose(line):
                paragraphs.append(line)
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
                heading = stripped.strip("= \t").rstrip(":").lower()
                skipped_level = level if heading in SECTIONS_WITHOUT_PROSE else 0
        elif skipped_level:
            continue
        elif first in _LIST_MARKS or line[0] == " ":
            close()
            if first in _LIST_MARKS:
                listed += len(stripped)
            entry = stripped.lstrip(_LIST_MARKS + " ")
            if is_sentence(entry) and (entry := tidy_paragraph(entry)) and is_prose(entry):
                paragraphs.append(entry)
        elif first in "|!" or stripped.startswith("----"):
            close()
            listed += len(stripped)
        else:
            opened.append(stripped)
    close()
    prose = "\n".join(paragraphs)
    is_list = listed >= FEWEST_LISTED_CHARACTERS and len(prose) < SMALLEST_PROSE_SHARE * (len(prose) + listed)
    return prose, is_list


def _heading_level(line: str) -> int:
    """Return the number of `=` on both sides; 0 if the line is not a heading."""
    left = len(line) - len(line.lstrip("="))
    right = len(line) - len(line.rstrip("="))
    return min(left, right, 6) if len(line) > left else 0


def is_sentence(entry: str) -> bool:
    """Return whether a list entry is a sentence: it begins with a capital, ends with a full stop, and cites no book."""
    return (
        _SENTENCE_END.search(entry[-8:]) is not None
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
