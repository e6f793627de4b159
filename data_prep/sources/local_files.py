"""Local files as pieces: found in a fixed order, cut between documents, read as UTF-8 text."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from data_prep.sources.kind import Piece

PIECE_BYTES = 8 << 20
"""Larger files are cut into pieces; a whole piece is read into memory."""
LONGEST_DOCUMENT_BYTES = 64 << 20
_FORMAT_OF_PREFIX = {
    b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"GIF8": "a GIF image", b"%PDF-": "a PDF",
    b"PK\x03\x04": "a zip archive (or EPUB, DOCX, ODT)", b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive", b"\x1f\x8b": "compressed with gzip", b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz", b"\x28\xb5\x2f\xfd": "compressed with zstd", b"{\\rtf": "an RTF document",
    b"\xd0\xcf\x11\xe0": "an old Word document", b"PAR1": "a Parquet file", b"\x7fELF": "a program",
}  # fmt: skip
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1a\x1b"))
MOST_CONTROLS = 0.01


def find_files(where: str, suffixes: tuple[str, ...] = ("",)) -> list[Path]:
    """Return a file, the files of a folder, or the files that match a glob (`**` matches any depth), sorted by name.

    A folder is searched recursively for files with one of the suffixes, without hidden files. If nothing is found, that
    is a ValueError.
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
    """Return one piece for each file that is not empty."""
    return [Piece(kind, str(path), 0, size) for path in paths if (size := path.stat().st_size)]


def cut_file(kind: str, path: Path, boundary: re.Pattern[bytes], piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """Cut a file into pieces of about `piece_bytes`, each of which begins at the end of a match of `boundary`."""
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
                f"{path}: a document of more than {LONGEST_DOCUMENT_BYTES >> 20} MiB begins at byte {piece.start};"
                f" is the file of kind '{kind}'?"
            )
    return pieces


def _next_boundary(descriptor: int, position: int, boundary: re.Pattern[bytes]) -> int | None:
    """Return the offset of the first document after `position`, or None if there is none."""
    window = 1 << 20
    overlap = 256  # a boundary may lie across two windows
    while block := os.pread(descriptor, window, position):
        if match := boundary.search(block):
            return position + match.end()
        if len(block) < window:
            return None
        position += window - overlap
    return None


def read_bytes(piece: Piece) -> bytes:
    """Return the bytes of a piece; raise ValueError if the file has become shorter since it was listed."""
    with open(piece.path, "rb") as file:
        file.seek(piece.start)
        data = file.read(piece.bytes)
    if len(data) != piece.bytes:
        raise ValueError(f"{piece.path}: became shorter while it was being read")
    return data


def read_utf8(piece: Piece) -> str:
    """Return the text of a piece, without a byte order mark and with line feeds as line ends.

    A text that is not UTF-8 or contains NUL is a ValueError.
    """
    data = read_bytes(piece)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        what = binary_format(data) if piece.start == 0 else None
        advice = f"the file is {what}" if what else "convert it, for example with iconv -t UTF-8"
        raise ValueError(f"{_place(piece, error.start)}: 0x{data[error.start]:02x}; {advice}") from None
    if (nul := data.find(b"\0")) >= 0:
        raise ValueError(f"{_place(piece, nul)}: NUL; the file is not text, or is damaged")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _place(piece: Piece, offset: int) -> str:
    """Return the beginning of an error message for a byte that is not UTF-8 text."""
    offset += piece.start
    return f"{piece.path}: not UTF-8 text at byte {offset} (line {line_of(piece.path, offset)})"


def line_of(path: str, offset: int) -> int:
    """Return the number of the line, from 1, that contains byte `offset`."""
    lines = 1
    with open(path, "rb") as file:
        while offset > 0 and (block := file.read(min(offset, 1 << 20))):
            lines += block.count(b"\n")
            offset -= len(block)
    return lines


def binary_format(data: bytes) -> str | None:
    """Return the format of a file, by its beginning; None if it may be text in UTF-8 or a one-byte encoding."""
    for beginning, what in _FORMAT_OF_PREFIX.items():
        if data.startswith(beginning):
            return what
    if data.startswith(UTF_16_MARKS):
        return "UTF-16"
    if (nul := data.find(b"\0")) >= 0:
        if data.count(b"\0") > len(data) // 4:
            return f"binary, or UTF-16 without a byte order mark (NUL at byte {nul})"
        return f"binary (NUL at byte {nul})"
    if len(data) - len(data.translate(None, _CONTROLS)) > MOST_CONTROLS * len(data):
        return f"binary (more than {MOST_CONTROLS:.0%} control characters)"
    return None
