"""Wikipedia articles as extractors leave them: lines that are no prose and the marks of removed templates."""

from __future__ import annotations

import html
import re

LONGEST_HEADING_WORDS = 6

_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")
_NOT_PROSE = re.compile(r"\[\[|\{\||\|\}|^[|!*#:;•·–—=-]|:$|__[A-Z]+__", re.MULTILINE)
_EMPTY_BRACKETS = re.compile(r"""[(\[]["'\s;,:/–-]*[)\]]""")
_OPENING = re.compile(r"\((?:\s*[;,:])+\s*|\(\s+")
_CLOSING = re.compile(r"(?:\s*[;,])*\s+\)|[;,]\)")
_SPACED_MARKS = (" ,", " ;", " :", " .")
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
        if line != title and len(line.split(None, LONGEST_HEADING_WORDS)) > LONGEST_HEADING_WORDS:
            if _NOT_PROSE.search(line):
                continue
            if "(" in line or "[" in line:
                line = _EMPTY_BRACKETS.sub("", line)
                line = _OPENING.sub("(", line)
                if " )" in line or ",)" in line or ";)" in line:
                    line = _CLOSING.sub(")", line)
            if any(mark in line for mark in _SPACED_MARKS):
                line = _SPACE_BEFORE.sub(r"\1", line)
            lines.append(line)
    return "\n".join(lines)
