"""Wikipedia articles as extractors leave them: lines that are no prose and the marks of removed templates."""

from __future__ import annotations

import html
import re

LONGEST_HEADING_WORDS = 6

_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")
_BULLETS = frozenset("|!*#:;•·–—=-")
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_EMPTY_BRACKETS = re.compile(r"""[(\[]["'\s;,:/–-]*[)\]]""")
_OPENING = re.compile(r"\((?:\s*[;,:])+\s*|\(\s+")
_CLOSING = re.compile(r"(?:\s*[;,])*\s+\)|[;,]\)")
_SPACE_BEFORE = re.compile(r"[ ]+([,;:.])(?=\s|$)")


def prose_of_article(text: str, title: str) -> str:
    """The paragraphs of an article.

    Drops the title line, section headings and list entries (lines of at most six words, lines that begin with a
    bullet or end in a colon, tables, image links), and repairs what removed templates leave: `( ; born 1950)` becomes
    `(born 1950)`, and `()` goes.
    """
    lines = []
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    for line in text.split("\n"):
        line = line.strip()
        if line != title and is_prose(line):
            lines.append(repaired(line))
    return "\n".join(lines)


def is_prose(line: str) -> bool:
    """Whether a line is part of the running text: more than six words, and neither a list entry, a table nor a link."""
    if not line or line[0] in _BULLETS or line[-1] == ":":
        return False
    if "[[" in line or "{|" in line or "|}" in line or ("__" in line and _MAGIC_WORD.search(line)):
        return False
    return len(line.split(None, LONGEST_HEADING_WORDS)) > LONGEST_HEADING_WORDS


def repaired(line: str) -> str:
    """A line without the marks that removed templates leave in it."""
    if "(" in line or "[" in line:
        line = _EMPTY_BRACKETS.sub("", line)
        line = _OPENING.sub("(", line)
        if " )" in line or ",)" in line or ";)" in line:
            line = _CLOSING.sub(")", line)
    if " ," in line or " ;" in line or " :" in line or " ." in line:
        line = _SPACE_BEFORE.sub(r"\1", line)
    return line
