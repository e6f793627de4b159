"""Tables as documents: the options of a path, the columns with text, id and title, and the documents of rows.

Options follow the path of a source: `parquet=wiki/,column=body`, `hub=ID:CONFIG,split=validation`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

from data_prep.sources.kind import NO_TEXT, Document, bad_row

_OPTION = re.compile(r"^(.*),([A-Za-z_]+)=([^,]*)$", re.DOTALL)
OPTIONS = ("column", "id", "title", "join_rows")
BATCH_BYTES = 1 << 20
MOST_BATCH_ROWS = 1024


def split_options(where: str, allowed: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Split `PATH,name=value,…` into the path and its options.

    Options are taken from the end as long as the text matches one. A value must not contain a comma, and the path must
    not end like an option. An unknown, repeated or empty option or path is a ValueError.
    """
    options: dict[str, str] = {}
    place = where
    while match := _OPTION.match(place):
        place, name, value = match.groups()
        if name not in allowed:
            raise ValueError(f"{where}: unknown option {name!r}; allowed: {', '.join(allowed)}")
        if name in options:
            raise ValueError(f"{where}: option {name!r} is given twice")
        if not value:
            raise ValueError(f"{where}: option {name!r} has no value")
        options[name] = value
    if not place:
        raise ValueError(f"{where}: there is no path before the options")
    return place, options


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns to read."""

    text: str
    id: str
    """Empty if there is none; the id of a document is then its file and row."""
    title: str
    """Empty if there is none."""
    join_rows: int
    """Number of consecutive rows that form a document."""

    def names(self) -> list[str]:
        """Return the names of the columns to read, each once."""
        return list(dict.fromkeys(name for name in (self.text, self.id, self.title) if name))


def choose_columns(schema: Any, options: dict[str, str], where: str, place: str) -> Columns:
    """Return the columns that the options name; the defaults are `text`, and `id` and `title` if the table has them.

    The schema is a `pyarrow.Schema`. Messages name `where`, the user's argument, or `place`, the file or data set. A
    column that is missing, repeated or not of strings, and an invalid `join_rows`, are a ValueError.
    """
    join_rows = options.get("join_rows", "1")
    if not re.fullmatch(r"[0-9]{1,9}", join_rows) or int(join_rows) < 1:
        raise ValueError(f"{where}: join_rows={join_rows}: must be an integer >= 1")
    text = options.get("column", "text")
    if not _has_type(schema, text, place, required=True, strings_only=True):
        hint = "" if "column" in options else "; select the column of the text with ,column=NAME"
        raise ValueError(f"{place}: column {text!r} holds {_type(schema, text)}, not strings{hint}")
    found = {}
    for name in ("id", "title"):
        given = options.get(name)
        if _has_type(schema, given or name, place, required=given is not None, strings_only=name == "title"):
            found[name] = given or name
        elif given is not None:
            raise ValueError(f"{place}: column {given!r} holds {_type(schema, given)}; it cannot be the {name}")
    return Columns(text, found.get("id", ""), found.get("title", ""), int(join_rows))


def documents_of(batches: Iterable[Any], first_row: int, columns: Columns, place: str) -> Iterator[Document]:
    """Yield the documents of consecutive rows, given as record batches or tables.

    With `join_rows` above 1, a document has one line for each of its rows; the last document may have fewer rows. Ids
    and messages contain `place`, the file or data set, and the number of the row. A text that is not UTF-8 is a
    ValueError.
    """
    row = first_row
    lines: list[str] = []
    name = ""
    for batch in batches:
        texts = _strings(batch, columns.text, row, place)
        ids = _strings(batch, columns.id, row, place) if columns.id else [None] * len(texts)
        titles = _strings(batch, columns.title, row, place) if columns.title else [None] * len(texts)
        for text, given, title in zip(texts, ids, titles, strict=True):
            own_name = f"{place}:row {row}" if given is None else str(given)
            if fault := next((value for value in (text, given, title) if isinstance(value, _NotUTF8)), None):
                yield bad_row("not UTF-8", f"{place}:row {row}", fault)
            elif text is None:
                yield Document("", own_name, dropped=NO_TEXT)
            elif columns.join_rows == 1:
                yield Document(text, own_name, title or "")
            else:
                name = name if lines else own_name
                lines.append(text)
            row += 1
            if lines and (row - first_row) % columns.join_rows == 0:
                yield Document("\n".join(lines), name)
                lines = []
    if lines:
        yield Document("\n".join(lines), name)


@dataclasses.dataclass(frozen=True)
class _NotUTF8:
    message: str

    def __call__(self) -> str:
        """Return the message, as `Document.fault` does."""
        return self.message


def batch_rows(rows: int, text_bytes: int) -> int:
    """Return the number of rows in a batch of about 1 MiB."""
    return max(1, min(MOST_BATCH_ROWS, BATCH_BYTES * rows // max(text_bytes, 1)))


def _has_type(schema: Any, name: str, place: str, required: bool, strings_only: bool) -> bool:
    import pyarrow.types as types

    count = schema.names.count(name)
    if count > 1:
        raise ValueError(f"{place}: there are {count} columns named {name!r}")
    if not count:
        if required:
            hint = "; select a column with ,column=NAME" if name == "text" else ""
            raise ValueError(f"{place}: no column {name!r} (columns: {', '.join(schema.names)}){hint}")
        return False
    kind = schema.field(name).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    is_string = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(is_string or (not strings_only and types.is_integer(kind)))


def _type(schema: Any, name: str) -> str:
    return str(schema.field(name).type)


def _strings(batch: Any, name: str, first_row: int, place: str) -> list[Any]:
    column = batch.column(name)
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        values: list[Any] = []
        for row in range(len(column)):
            try:
                values.append(column[row].as_py())
            except UnicodeDecodeError as error:
                message = (
                    f"{place}: row {first_row + row}: column {name!r} is not UTF-8 at byte {error.start} of its text:"
                    f" 0x{error.object[error.start]:02x}"
                )
                values.append(_NotUTF8(message))
        return values
