"""Local files as pieces: cut between documents, read as UTF-8 text, decompressed if need be."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.sources.compression import DamagedError, compression_of, decompressed
from data_prep.sources.kind import Piece

PIECE_BYTES = 8 << 20
"""Larger files are cut into pieces; a whole piece is read into memory."""
LONGEST_DOCUMENT_BYTES = 64 << 20
_LONGEST_BOUNDARY_BYTES = 256  # A boundary may lie across two windows.
_FORMAT_OF_PREFIX = {
    b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"GIF8": "a GIF image", b"%PDF-": "a PDF",
    b"PK\x03\x04": "a zip archive (or EPUB, DOCX, ODT)", b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive", b"\x1f\x8b": "compressed with gzip", b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz", b"\x28\xb5\x2f\xfd": "compressed with zstd", b"{\\rtf": "an RTF document",
    b"\xd0\xcf\x11\xe0": "an old Word document", b"PAR1": "a Parquet file", b"\x7fELF": "a program",
}  # fmt: skip
LINE_END = re.compile(rb"\n")
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1a\x1b"))
MOST_CONTROLS = 0.01


def whole_files(kind: str, paths: list[Path]) -> list[Piece]:
    """Return one piece for each file that is not empty."""
    return [Piece(kind, str(path), 0, size) for path in paths if (size := path.stat().st_size)]


def cut_file(kind: str, path: Path, boundary: re.Pattern[bytes], piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """Cut a file into pieces of about `piece_bytes`, each of which begins at the end of a match of `boundary`.

    A compressed file can only be read from its start, so it is one piece.
    """
    if compression_of(path) is not None:
        return whole_files(kind, [path])
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
    while block := os.pread(descriptor, window, position):
        if match := boundary.search(block):
            return position + match.end()
        if len(block) < window:
            return None
        position += window - _LONGEST_BOUNDARY_BYTES
    return None


def read_bytes(piece: Piece) -> bytes:
    """Return the bytes of a piece; raise ValueError if the file has become shorter since it was listed."""
    with open(piece.path, "rb") as file:
        file.seek(piece.start)
        data = file.read(piece.bytes)
    if len(data) != piece.bytes:
        raise ValueError(f"{piece.path}: became shorter while it was being read")
    return data


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a piece that is read at once: the whole piece, or a part of a compressed file."""

    path: str
    data: bytes
    start: int
    """Offset of the first byte in the file; in a compressed one, in its content."""
    known_line: int | None = None
    """Number of the first line, from 1; None if the lines before have not been counted."""

    @functools.cached_property
    def first_line(self) -> int:
        """Number of the first line, from 1; counting reads the file up to the part."""
        return self.known_line or line_of(self.path, self.start)

    def text(self) -> str:
        """Return the text, without a byte order mark and with line feeds as line ends.

        A text that is not UTF-8 or contains NUL is a ValueError.
        """
        try:
            text = self.data.decode("utf-8")
        except UnicodeDecodeError as error:
            what = binary_format(self.data) if self.start == 0 else None
            advice = f"the file is {what}" if what else "convert it, for example with iconv -t UTF-8"
            raise ValueError(f"{self._place(error.start)}: 0x{self.data[error.start]:02x}; {advice}") from None
        if (nul := self.data.find(b"\0")) >= 0:
            raise ValueError(f"{self._place(nul)}: NUL; the file is not text, or is damaged")
        return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")

    def _place(self, offset: int) -> str:
        line = self.first_line + self.data.count(b"\n", 0, offset)
        return f"{self.path}: not UTF-8 text at byte {self.start + offset} (line {line})"


def read_parts(piece: Piece, boundary: re.Pattern[bytes]) -> Iterator[Part]:
    """Yield a piece as one part, or a compressed file as parts of about 8 MiB that begin after a `boundary`.

    A damaged or truncated file, and a document of more than 64 MiB in a compressed one, are a ValueError.
    """
    if compression_of(piece.path) is None:
        yield Part(piece.path, read_bytes(piece), piece.start)
        return
    buffer, start, line, searched = bytearray(), 0, 1, PIECE_BYTES
    try:
        for chunk in decompressed(piece.path):
            buffer += chunk
            while len(buffer) > searched:
                match = boundary.search(buffer, searched)
                if match is None:
                    searched = max(searched, len(buffer) - _LONGEST_BOUNDARY_BYTES)
                    break
                part = Part(piece.path, bytes(buffer[: match.end()]), start, line)
                yield part
                start, line = start + len(part.data), line + part.data.count(b"\n")
                del buffer[: match.end()]
                searched = PIECE_BYTES
            if len(buffer) > LONGEST_DOCUMENT_BYTES + PIECE_BYTES:
                raise ValueError(f"{piece.path}:{line}: a document of more than {LONGEST_DOCUMENT_BYTES >> 20} MiB")
    except DamagedError as error:
        lines = line - 1 + buffer.count(b"\n")
        raise ValueError(f"{piece.path}: damaged or truncated after line {lines}: {error}") from None
    if buffer:
        yield Part(piece.path, bytes(buffer), start, line)


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
