"""Kind `parquet`: the rows of Parquet files, one document per row.

A piece is a range of rows: several row groups, one, or a part of one. Rows are decoded in batches of about 1 MiB from a
buffered file, so memory depends on the size of the pages, not of the row groups. The format has no random access within
a row group: reading a part of one decodes everything before it, so the number of parts is limited.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

from data_prep.sources.finding import Names, find_files
from data_prep.sources.kind import Document, Piece, SourceKind
from data_prep.sources.local_files import PIECE_BYTES
from data_prep.sources.tables import OPTIONS, Columns, batch_rows, choose_columns, documents_of, split_options

MOST_PARTS = 16
"""Largest number of parts of a row group. On average, a part decodes and skips 8 times the rows that it yields."""
_BUFFER_BYTES = 4 << 20
"""Buffer of each column; over HTTP the size of a request."""
_MAGIC = b"PAR1"


@dataclasses.dataclass(frozen=True)
class RowRange:
    """The rows and columns of a piece; stored as text in `Piece.selection`."""

    first: int
    end: int
    columns: Columns

    def __str__(self) -> str:
        """Return JSON, which can store any column name."""
        return selection_text(rows=[self.first, self.end], **dataclasses.asdict(self.columns))

    @classmethod
    def parse(cls, text: str) -> RowRange:
        """Parse the result of `str`."""
        content = json.loads(text)
        first, end = content.pop("rows")
        return cls(first, end, Columns(**content))


def selection_text(**content: Any) -> str:
    """Encode the selection of a piece as JSON."""
    return json.dumps(content, ensure_ascii=False, sort_keys=True)


def list_pieces(where: str) -> list[Piece]:
    """Cut the `.parquet` files of a folder (recursively), a file or a glob into ranges of rows.

    A file that is not Parquet or is truncated, and a column that is missing or not of strings, are a ValueError.
    """
    place, options = split_options(where, OPTIONS)
    pieces = []
    for path in find_files(place, Names.ending(".parquet", compressed=False)):
        with open(path, "rb") as file:
            pieces += rows_as_pieces("parquet", str(path), file, options, where)
    return pieces


def read_piece(piece: Piece) -> Iterator[Document]:
    """Yield the documents of a range of rows."""
    with open(piece.path, "rb") as file:
        yield from read_rows(piece, file)


def rows_as_pieces(
    kind: str, path: str, file: Any, options: dict[str, str], where: str, cut_row_groups: bool = True
) -> list[Piece]:
    """Cut the open `file` into pieces of about 8 MiB of text: whole row groups, or parts of one of at least two pieces.

    `where` is the user's argument, for messages. Without `cut_row_groups`, no piece is a part of a row group.
    """
    table = open_table(path, file)
    columns = choose_columns(table.schema_arrow, options, where, path)
    pieces: list[Piece] = []
    offset = row = 0

    def add(first: int, end: int, size: int) -> None:
        nonlocal offset
        pieces.append(Piece(kind, path, offset, offset + size, str(RowRange(first, end, columns))))
        offset += size

    waiting_from = waiting_bytes = 0
    for group_rows, group_bytes in _row_groups(table, columns):
        if waiting_bytes and waiting_bytes + group_bytes > PIECE_BYTES:
            add(waiting_from, row, waiting_bytes)
            waiting_from, waiting_bytes = row, 0
        if cut_row_groups and group_bytes >= 2 * PIECE_BYTES:
            parts = min(MOST_PARTS, group_bytes // PIECE_BYTES)
            for first, end, begin, stop in cut_rows(group_rows, group_bytes, parts, columns.join_rows):
                add(row + first, row + end, stop - begin)
            waiting_from = row + group_rows
        else:
            waiting_bytes += group_bytes
        row += group_rows
    if row > waiting_from:
        add(waiting_from, row, waiting_bytes)
    return pieces


def cut_rows(rows: int, size: int, parts: int, join_rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (first row, end, first byte, end) of at most `parts` parts of `size` bytes; none splits a document."""
    documents = -(-rows // join_rows)
    for part in range(parts):
        first, end = (min(documents * n // parts * join_rows, rows) for n in (part, part + 1))
        if end > first:
            yield first, end, size * part // parts, size * (part + 1) // parts


def read_rows(piece: Piece, file: Any, metadata: Any = None) -> Iterator[Document]:
    """Yield the documents of a piece of the open `file`; rows are only joined within a row group.

    `metadata` is the `pyarrow.parquet.FileMetaData` of the file if it was read before.
    """
    import pyarrow

    wanted = RowRange.parse(piece.selection)
    table = open_table(piece.path, file, metadata)
    if table.metadata.num_rows < wanted.end:
        raise ValueError(f"{piece.path}: has {table.metadata.num_rows} rows, but had {wanted.end} when it was listed")
    group_start = 0
    for group, (group_rows, group_bytes) in enumerate(_row_groups(table, wanted.columns)):
        first, end = max(wanted.first, group_start), min(wanted.end, group_start + group_rows)
        if first < end:
            batches = table.iter_batches(
                batch_rows(group_rows, group_bytes), [group], wanted.columns.names(), use_threads=False
            )
            place = f"{piece.path}: damaged in row group {group}"
            chosen = _between(batches, first - group_start, end - group_start, place)
            try:
                yield from documents_of(chosen, first, wanted.columns, piece.path)
            except (pyarrow.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise ValueError(f"{place}: {error}") from None
        group_start += group_rows


def open_table(path: str, file: Any, metadata: Any = None) -> Any:
    """Open a Parquet file as a buffered `pyarrow.parquet.ParquetFile`."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file, metadata=metadata, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        file.seek(0)
        if file.read(len(_MAGIC)) == _MAGIC:
            file.seek(-len(_MAGIC), os.SEEK_END)
            if file.read() != _MAGIC:
                raise ValueError(f"{path}: truncated: begins as a Parquet file, but its end is missing") from None
            raise ValueError(f"{path}: the footer is damaged: {error}") from None
        raise ValueError(f"{path}: not a Parquet file") from None
    total = table.metadata.num_rows
    if (rows := sum(table.metadata.row_group(n).num_rows for n in range(table.num_row_groups))) != total:
        raise ValueError(f"{path}: the footer is damaged: it lists {total} rows, but {rows} in its row groups")
    return table


def _row_groups(table: Any, columns: Columns) -> Iterator[tuple[int, int]]:
    """Yield (rows, uncompressed bytes of the text column) of each row group."""
    metadata = table.metadata
    leaves = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
    for number in range(metadata.num_row_groups):
        group, leaf = metadata.row_group(number), leaves.index(columns.text)
        yield group.num_rows, group.column(leaf).total_uncompressed_size


def _between(batches: Iterator[Any], first: int, end: int, place: str) -> Iterator[Any]:
    """Yield rows [first, end) of consecutive batches; fewer rows are a ValueError that begins with `place`."""
    row = 0
    for batch in batches:
        begin, stop = max(first - row, 0), min(end - row, len(batch))
        if begin < stop:
            yield batch.slice(begin, stop - begin)
        row += len(batch)
        if row >= end:
            return
    # A flipped bit in a page's header can make pyarrow end early, without an error.
    raise ValueError(f"{place}: holds {row} rows, but the footer promises {end} or more")


KIND = SourceKind(
    "parquet", "one document per row, in the column 'text' or ,column=NAME", "parquet=wiki/,column=body",
    list_pieces, read_piece,
)  # fmt: skip
