"""Kind `text`: documents separated by blank lines, one paragraph or sentence per line; and joining wrapped lines."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_prep.sources.finding import Names, find_files
from data_prep.sources.kind import Document, Piece, SourceKind
from data_prep.sources.local_files import cut_file, read_parts
from data_prep.text.scripts import display_width, without_breaks_between_dense

DOCUMENT_BOUNDARY = re.compile(rb"\n[ \t\f\r]*\n")
WIDEST_WRAPPED_LINE = 100
_BLANK_LINES = re.compile(r"\n(?:[ \t\f]*\n)+")
_HYPHEN_IN_WORD = re.compile(r"\w-$")


def list_pieces(where: str) -> list[Piece]:
    """Cut the `.txt` files of a folder, a file or a glob at blank lines."""
    paths = find_files(where, Names.ending(".txt"))
    return [piece for path in paths for piece in cut_file("text", path, DOCUMENT_BOUNDARY)]


def read_piece(piece: Piece) -> Iterator[Document]:
    """Yield one document for each block of lines between blank lines."""
    for part in read_parts(piece, DOCUMENT_BOUNDARY):
        for number, text in enumerate(_BLANK_LINES.split(part.text())):
            if text.strip():
                yield Document(text, f"{piece.path}:{part.start}:{number}")


def is_hard_wrapped(text: str) -> bool:
    """Return whether lines are wrapped at a fixed width: blank lines separate paragraphs, and few lines are long."""
    lines = [line for line in text.split("\n") if line.strip()]
    wide = sum(display_width(line) > WIDEST_WRAPPED_LINE for line in lines)
    return _BLANK_LINES.search(text) is not None and wide * 100 <= len(lines)


def split_blocks(text: str) -> list[str]:
    """Return the blocks of lines between blank lines."""
    return [block for block in _BLANK_LINES.split(text) if block.strip()]


def join_lines(block: str) -> str:
    """Join a wrapped block into one line; a word broken after its own hyphen (`well-` / `known`) is rejoined."""
    joined: list[str] = []
    for line in filter(None, map(str.strip, block.split("\n"))):
        broken = joined and "a" <= line[0] <= "z" and _HYPHEN_IN_WORD.search(joined[-1], len(joined[-1]) - 2)
        joined += [line] if broken or not joined else ["\n", line]
    return without_breaks_between_dense("".join(joined)).replace("\n", " ")


KIND = SourceKind("text", "documents separated by blank lines, UTF-8", "'text=corpus/*.txt'", list_pieces, read_piece)
