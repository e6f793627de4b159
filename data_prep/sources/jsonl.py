"""Kind `jsonl`: one JSON object a line with the document in "text", and if it likes "title" and "id"."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from data_prep.document import Document
from data_prep.sources.pieces import Piece, SourceKind, cut_file, find_files, line_of, read_utf8

LINE_END = re.compile(rb"\n")


def list_pieces(where: str) -> list[Piece]:
    """`.jsonl`, `.ndjson` and `.json` files of a folder, a file or a glob, cut between lines."""
    paths = find_files(where, (".jsonl", ".ndjson", ".json"))
    return [piece for path in paths for piece in cut_file("jsonl", path, LINE_END)]


def read_objects(piece: Piece) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a piece, each with its text checked.

    Yields:
        (place of the line as `file:line`, object with a string under "text").

    Raises:
        ValueError: a line that is not such an object; says file and line.
    """
    first_line = line_of(piece.path, piece.start)
    for number, line in enumerate(read_utf8(piece).split("\n"), start=first_line):
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


def read_piece(piece: Piece) -> Iterator[Document]:
    """One document a line; blank lines inside a text part its paragraphs."""
    for place, record in read_objects(piece):
        yield Document(record["text"], str(record.get("id", place)), "jsonl", str(record.get("title", "")))


KIND = SourceKind("jsonl", 'one JSON object a line: {"text": "…"}', "'jsonl=corpus/*.jsonl'", list_pieces, read_piece)
