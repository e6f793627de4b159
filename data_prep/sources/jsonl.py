"""Kind `jsonl`: one JSON object per line with the document under "text", and optionally "title" and "id"."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from data_prep.sources.finding import Names, find_files
from data_prep.sources.kind import NO_TEXT, Document, Piece, SourceKind, bad_row
from data_prep.sources.local_files import LINE_END, Part, binary_format, cut_file, read_parts

NOT_A_STRING = "text is not a string"
_MARK = b"\xef\xbb\xbf"
_MOST_KEYS = 12
_CHECKED_BYTES = 1 << 12


class Row(NamedTuple):
    """A row of a file. In place of a row without text, or one that is not sound, `dropped` has a document."""

    id: str
    title: str
    text: str
    dropped: Document | None = None


def list_pieces(where: str) -> list[Piece]:
    """Cut the `.jsonl`, `.ndjson` and `.json` files of a folder, a file or a glob between lines."""
    paths = find_files(where, Names.ending(".jsonl", ".ndjson", ".json"))
    return [piece for path in paths for piece in cut_file("jsonl", path, LINE_END)]


def read_rows(part: Part) -> Iterator[Row]:
    """Yield the rows of a part; blank lines are no rows.

    A row whose text is null, missing or no string is dropped, as in a table; but the first row of a file must have one.
    """
    is_first = part.start == 0
    for number, line in enumerate(part.data.split(b"\n")):
        line = line.removeprefix(_MARK) if number == 0 and is_first else line
        if not line.strip():
            continue
        name = f"{part.path}:{part.start}:{number}"
        try:
            record = _object_of(line)
            if is_first:
                _require_text(record)
        except _UnsoundRowError as error:
            fault = functools.partial(_fault, part, number, error.message)
            yield Row(name, "", "", bad_row(error.reason, name, fault))
        else:
            text = record.get("text")
            name, title = _string(record, "id") or name, _string(record, "title")
            if isinstance(text, str):
                yield Row(name, title, text)
            else:
                reason = NO_TEXT if text is None else NOT_A_STRING
                yield Row(name, title, "", Document("", name, title, dropped=reason))
        is_first = False


def _fault(part: Part, number: int, message: str) -> str:
    return f"{part.path}:{part.first_line + number}: {message}"


class _UnsoundRowError(Exception):
    def __init__(self, reason: str, message: str) -> None:
        self.reason, self.message = reason, message


def _object_of(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        value = f"0x{line[error.start]:02x}"
        what = f"; the file is {known}" if (known := binary_format(line[:_CHECKED_BYTES])) else ""
        message = f"not UTF-8 text at byte {error.start} of the line: {value}{what}"
        raise _UnsoundRowError("not UTF-8", message) from None
    if (nul := line.find(b"\0")) >= 0:
        raise _UnsoundRowError("NUL", f"NUL at byte {nul} of the line; the file is not text, or is damaged")
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise _UnsoundRowError("not JSON", f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise _UnsoundRowError("nested too deeply", "objects or arrays are nested too deeply to be read") from None
    except ValueError:  # Python's limit, against slow conversions
        raise _UnsoundRowError("integer too long", "an integer of more than 4,300 digits") from None
    if not isinstance(record, dict):
        raise _UnsoundRowError("not an object", 'expected an object with a string under "text"')
    return record


def _require_text(record: dict[str, Any]) -> None:
    if not isinstance(record.get("text", 0), str | None):
        keys = ", ".join(list(record)[:_MOST_KEYS]) + (", …" if len(record) > _MOST_KEYS else "")
        message = f'expected an object with a string under "text" (keys here: {keys})'
        raise _UnsoundRowError("first row without text", message)


def _string(record: dict[str, Any], key: str) -> str:
    """Return a string or number of a row; an empty string if it is something else."""
    value = record.get(key)
    return str(value) if isinstance(value, str | int | float) else ""


def read_piece(piece: Piece) -> Iterator[Document]:
    """Yield one document per line; line feeds in a text separate its paragraphs."""
    for part in read_parts(piece, LINE_END):
        for row in read_rows(part):
            yield row.dropped or Document(row.text, row.id, row.title)


KIND = SourceKind(
    "jsonl", 'one JSON object per line: {"text": "…"}; also .gz, .bz2, .xz and .zst', "'jsonl=corpus/*.jsonl'",
    list_pieces, read_piece,
)  # fmt: skip
