"""Telling from its bytes that a file is not text: what kind of file it is instead, in words for a message."""

from __future__ import annotations

_BEGINNINGS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF-": "a PDF",
    b"PK\x03\x04": "a zip archive (or EPUB, DOCX, ODT)",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"{\\rtf": "an RTF document",
    b"\xd0\xcf\x11\xe0": "an old Word document",
    b"PAR1": "a Parquet file",
    b"\x7fELF": "a program",
}
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1a\x1b"))
MOST_CONTROLS = 0.01


def what_it_is(data: bytes) -> str | None:
    """What the bytes of a file are, if they are not text in a one-byte encoding or UTF-8; None if they may be.

    Args:
        data: the file, or its beginning.
    """
    for beginning, what in _BEGINNINGS.items():
        if data.startswith(beginning):
            return what
    if data.startswith(_UTF_16_MARKS):
        return "UTF-16"
    if (nul := data.find(b"\0")) >= 0:
        if data.count(b"\0") > len(data) // 4:
            return f"binary, or UTF-16 without a byte order mark (NUL at byte {nul})"
        return f"binary (NUL at byte {nul})"
    if len(data) - len(data.translate(None, _CONTROLS)) > MOST_CONTROLS * len(data):
        return f"binary (more than {MOST_CONTROLS:.0%} control characters)"
    return None
