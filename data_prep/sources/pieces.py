"""What a kind of source is, and the local files behind it: found in a fixed order and cut between documents."""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.document import Document
from data_prep.sources.not_text import what_it_is

PIECE_BYTES = 8 << 20
"""Files larger than this are cut; a piece is read into memory whole."""
LONGEST_DOCUMENT_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a source that is read by itself: bytes [start, end) of a file, or an embedded corpus."""

    kind: str
    path: str
    start: int
    end: int
    selection: str = ""
    """What of the file is meant where a range of bytes cannot say it; `end - start` is then its size, estimated."""

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start


@dataclasses.dataclass(frozen=True)
class SourceKind:
    """One kind of source: how to find its pieces and how to read one."""

    name: str
    summary: str
    example: str
    list_pieces: Callable[[str], list[Piece]]
    """From the place the user gave to pieces in a fixed order; raises ValueError where there are none."""
    read_piece: Callable[[Piece], Iterator[Document]]
    needs_place: bool = True
    licence: str = "not recorded: as whoever holds the rights in the text allows"
    """Of the text, for the data card."""


def find_files(where: str, suffixes: tuple[str, ...] = ("",)) -> list[Path]:
    """The files that a path, folder or glob means, sorted by name; hidden files in a folder are left out.

    Args:
        where: a file, a folder (searched with its sub-folders for `suffixes`) or a glob (`**` is any depth).
        suffixes: endings of the files wanted from a folder.

    Raises:
        ValueError: no such path, or nothing matches.
    """
    place = Path(os.path.expanduser(where))
    if place.is_dir():
        found = [
            path
            for path in place.rglob("*")
            if path.name.endswith(suffixes)
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(place).parts)
        ]
        if not found:
            wanted = "" if suffixes == ("",) else f" ending in {' or '.join(suffixes)}"
            raise ValueError(f"{where}: the folder holds no files{wanted}")
    elif place.is_file():
        found = [place]
    else:
        found = [path for path in map(Path, glob.glob(str(place), recursive=True)) if path.is_file()]
        if not found:
            raise ValueError(f"{where}: no such file, and no file matches it as a glob")
    return sorted(found, key=str)


def whole_files(kind: str, paths: list[Path]) -> list[Piece]:
    """One piece a file; empty files are left out."""
    return [Piece(kind, str(path), 0, size) for path in paths if (size := path.stat().st_size)]


def cut_file(kind: str, path: Path, boundary: re.Pattern[bytes], piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """Cut a file into pieces of about `piece_bytes`, each beginning where `boundary` ends.

    Raises:
        ValueError: one document is longer than 64 MiB.
    """
    size = path.stat().st_size
    starts = [0]
    with open(path, "rb") as file:
        while starts[-1] + piece_bytes < size:
            found = _next_boundary(file.fileno(), starts[-1] + piece_bytes, boundary)
            if found is None or found >= size:
                break
            starts.append(found)
    pieces = [Piece(kind, str(path), a, b) for a, b in zip(starts, [*starts[1:], size], strict=True) if b > a]
    for piece in pieces:
        if piece.bytes > LONGEST_DOCUMENT_BYTES + piece_bytes:
            raise ValueError(
                f"{path}: no end of a document within {LONGEST_DOCUMENT_BYTES >> 20} MiB after byte {piece.start};"
                f" is it of kind '{kind}'?"
            )
    return pieces


def _next_boundary(descriptor: int, position: int, boundary: re.Pattern[bytes]) -> int | None:
    """Offset of the first document that begins after `position`, None where the file ends first."""
    window = 1 << 20
    overlap = 256
    while block := os.pread(descriptor, window, position):
        if match := boundary.search(block):
            return position + match.end()
        if len(block) < window:
            return None
        position += window - overlap
    return None


def read_bytes(piece: Piece) -> bytes:
    """The bytes of a piece.

    Raises:
        ValueError: the file has become shorter since it was listed.
    """
    with open(piece.path, "rb") as file:
        file.seek(piece.start)
        data = file.read(piece.bytes)
    if len(data) != piece.bytes:
        raise ValueError(f"{piece.path}: became shorter while it was being read")
    return data


def read_utf8(piece: Piece) -> str:
    """The text of a piece, byte order mark removed and line ends turned into line feeds.

    Raises:
        ValueError: not UTF-8, or holds NUL; says file, byte and line.
    """
    data = read_bytes(piece)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        what = what_it_is(data) if piece.start == 0 else None
        advice = f"the file is {what}" if what else "convert it, for example with iconv -t UTF-8"
        raise ValueError(f"{_place(piece, error.start)}: 0x{data[error.start]:02x}; {advice}") from None
    if (nul := data.find(b"\0")) >= 0:
        raise ValueError(f"{_place(piece, nul)}: NUL; the file is not text, or is damaged")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _place(piece: Piece, offset: int) -> str:
    """Where a piece is not UTF-8 text, for a message."""
    offset += piece.start
    return f"{piece.path}: not UTF-8 text at byte {offset} (line {line_of(piece.path, offset)})"


def line_of(path: str, offset: int) -> int:
    """Number of the line (from 1) that holds byte `offset`."""
    lines = 1
    with open(path, "rb") as file:
        while offset > 0 and (block := file.read(min(offset, 1 << 20))):
            lines += block.count(b"\n")
            offset -= len(block)
    return lines
