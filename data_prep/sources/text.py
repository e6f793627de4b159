"""Kind `text`: documents separated by blank lines, one paragraph or one sentence a line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_prep.sources.kind import Document, Piece, SourceKind
from data_prep.sources.local_files import cut_file, find_files, read_utf8

DOCUMENT_BOUNDARY = re.compile(rb"\n[ \t\f\r]*\n")
WIDEST_WRAPPED_LINE = 100
_BLANK_LINES = re.compile(r"\n(?:[ \t\f]*\n)+")
_AFTER_HYPHEN = re.compile(r"(?<=\w-)\s*\n\s*(?=[a-z])")
_LINE_END = re.compile(r"\s*\n\s*")


def list_pieces(where: str) -> list[Piece]:
    """`.txt` files of a folder, a file or a glob, cut at blank lines."""
    return [piece for path in find_files(where, (".txt",)) for piece in cut_file("text", path, DOCUMENT_BOUNDARY)]


def read_piece(piece: Piece) -> Iterator[Document]:
    """One document for each run of lines without a blank one."""
    for number, text in enumerate(_BLANK_LINES.split(read_utf8(piece))):
        if text.strip():
            yield Document(text, f"{piece.path}:{piece.start}:{number}", "text")


KIND = SourceKind("text", "documents separated by blank lines, UTF-8", "'text=corpus/*.txt'", list_pieces, read_piece)


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
