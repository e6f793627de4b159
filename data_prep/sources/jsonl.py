"""Kind `jsonl`: one JSON object per line with the document under "text", and optionally "title" and "id".

A file compressed with gzip or zstd can only be read from its start, so it is one piece, which is read as a stream.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from data_prep.sources.kind import Document, Piece, SourceKind
from data_prep.sources.local_files import LONGEST_DOCUMENT_BYTES, cut_file, find_files, line_of, read_utf8, whole_files

LINE_END = re.compile(rb"\n")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_SUFFIXES = (".jsonl", ".ndjson", ".json")


def list_pieces(where: str) -> list[Piece]:
    """Cut the `.jsonl`, `.ndjson` and `.json` files of a folder, a file or a glob between lines; also `.gz`, `.zst`."""
    wanted = (*_SUFFIXES, *(f"{suffix}{ending}" for suffix in _SUFFIXES for ending in COMPRESSIONS))
    pieces = []
    for path in find_files(where, wanted):
        pieces += whole_files("jsonl", [path]) if path.suffix in COMPRESSIONS else cut_file("jsonl", path, LINE_END)
    return pieces


def read_objects(piece: Piece) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a piece with their places `file:line`; each must have a string under "text" (ValueError)."""
    compressed = os.path.splitext(piece.path)[1] in COMPRESSIONS
    lines = _decompressed_lines(piece.path) if compressed else iter(read_utf8(piece).split("\n"))
    for number, line in enumerate(lines, start=1 if compressed else line_of(piece.path, piece.start)):
        if not line.strip():
            continue
        place = f"{piece.path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            keys = f" (keys here: {', '.join(record)})" if isinstance(record, dict) else ""
            raise ValueError(f'{place}: expected an object with a string under "text"{keys}')
        yield place, record


def _decompressed_lines(path: str) -> Iterator[str]:
    """Yield the lines of a compressed file; raise ValueError for a damaged file or a line of more than 64 MiB."""
    import pyarrow

    number = 0
    try:
        with pyarrow.input_stream(path, compression=COMPRESSIONS[os.path.splitext(path)[1]]) as stream:
            reader = io.BufferedReader(stream, 1 << 20)
            while data := reader.readline(LONGEST_DOCUMENT_BYTES):
                number += 1
                if len(data) == LONGEST_DOCUMENT_BYTES:
                    raise ValueError(f"{path}:{number}: a line of more than {LONGEST_DOCUMENT_BYTES >> 20} MiB")
                yield data.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: not UTF-8 at byte {error.start} of the line") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"{path}: damaged or truncated after line {number}: {error}") from None


def read_piece(piece: Piece) -> Iterator[Document]:
    """Yield one document per line; line feeds in a text separate its paragraphs."""
    for place, record in read_objects(piece):
        yield Document(record["text"], str(record.get("id", place)), str(record.get("title", "")))


KIND = SourceKind(
    "jsonl", 'one JSON object per line: {"text": "…"}; also .gz and .zst', "'jsonl=corpus/*.jsonl'",
    list_pieces, read_piece,
)  # fmt: skip
