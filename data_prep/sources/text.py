"""Kind `text`: documents separated by blank lines, one paragraph or one sentence a line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_prep.document import Document
from data_prep.sources.pieces import Piece, SourceKind, cut_file, find_files, read_utf8

_BLANK_LINES = re.compile(r"\n(?:[ \t\f]*\n)+")
_BOUNDARY = re.compile(rb"\n[ \t\f\r]*\n")


def list_pieces(where: str) -> list[Piece]:
    """`.txt` files of a folder, a file or a glob, cut at blank lines."""
    return [piece for path in find_files(where, (".txt",)) for piece in cut_file("text", path, _BOUNDARY)]


def read_piece(piece: Piece) -> Iterator[Document]:
    """One document for each run of lines without a blank one."""
    for number, text in enumerate(_BLANK_LINES.split(read_utf8(piece))):
        if text.strip():
            yield Document(text, f"{piece.path}:{piece.start}:{number}", "text")


KIND = SourceKind("text", "documents separated by blank lines, UTF-8", "'text=corpus/*.txt'", list_pieces, read_piece)
