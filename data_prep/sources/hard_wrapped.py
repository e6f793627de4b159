"""Paragraphs of text that was wrapped at a fixed width."""

from __future__ import annotations

import re

WIDEST_WRAPPED_LINE = 100
_BLANK_LINES = re.compile(r"\n(?:[ \t\f]*\n)+")
_AFTER_HYPHEN = re.compile(r"(?<=\w-)\s*\n\s*(?=[a-z])")
_LINE_END = re.compile(r"\s*\n\s*")


def is_hard_wrapped(text: str) -> bool:
    """Whether paragraphs are broken at a fixed width: blank lines part them and hardly a line is longer than 100."""
    lines = [line for line in text.split("\n") if line.strip()]
    wide = sum(len(line) > WIDEST_WRAPPED_LINE for line in lines)
    return _BLANK_LINES.search(text) is not None and wide * 100 <= len(lines)


def blocks(text: str) -> list[str]:
    """Runs of lines without a blank one."""
    return [block for block in _BLANK_LINES.split(text) if block.strip()]


def join_lines(block: str) -> str:
    """One line from a wrapped block; a word broken after its own hyphen (`well-` / `known`) is closed up."""
    return _LINE_END.sub(" ", _AFTER_HYPHEN.sub("", block.strip()))
