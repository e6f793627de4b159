"""Kind `hub`: a data set of the Hugging Face Hub, streamed, or read from the local cache when downloading is forbidden.

`datasets` finds its files and configurations. A piece is one of

- a range of rows of a Parquet file, the format of nearly all large data sets, read as by kind `parquet`; over HTTP only
  the bytes of the selected columns are fetched, and nothing is kept on disk;
- a range of rows of an Arrow file that `datasets` prepared earlier (offline only);
- a file of another format (JSON, CSV, text), which `datasets` reads as a stream.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_prep.sources import hub_loading, parquet
from data_prep.sources.finding import Tree, tell_passed_over
from data_prep.sources.kind import Document, Piece, SourceKind
from data_prep.sources.local_files import PIECE_BYTES
from data_prep.sources.parquet import RowRange, cut_rows, open_table, read_rows, rows_as_pieces, selection_text
from data_prep.sources.tables import OPTIONS, Columns, batch_rows, choose_columns, documents_of, split_options

DEFAULT_SPLIT = "train"
_PARALLEL_FOOTERS = 8
_STREAM_BATCH_ROWS = 64


def list_pieces(where: str) -> list[Piece]:
    """List the pieces of a split, in the order of its files; of remote Parquet files only the footers are read.

    A data set, configuration, split or column that does not exist or may not be read is a ValueError, and a Hub that
    cannot be reached is an OSError.
    """
    place, options = split_options(where, (*OPTIONS, "split", "revision"))
    name, config = _name_and_config(place)
    split, revision = options.pop("split", DEFAULT_SPLIT), options.pop("revision", None)
    builder = hub_loading.load_builder(where, name, config, revision)
    if not builder.config.data_files:
        return _pieces_of_prepared(where, builder, split, options)
    if os.path.isdir(name):
        _tell_passed_over(where, Path(name), builder.config.data_files)
    _require_split(where, split, builder.config.data_files)
    files = [str(file) for file in builder.config.data_files[split]]
    rows = None
    if all(file.endswith(".parquet") for file in files):
        with ThreadPoolExecutor(_PARALLEL_FOOTERS) as pool:
            listed = pool.map(lambda file: _pieces_of_parquet(where, file, options), files)
            pieces = [piece for of_file in listed for piece in of_file]
        rows = sum(found.end - found.first for found in (RowRange.parse(piece.selection) for piece in pieces))
    else:
        pieces = _pieces_of_stream(where, builder, split, files, options)
    if hasattr(builder, "download_is_complete"):
        hub_loading.require_complete(where, builder, split, rows)
    return pieces


def read_piece(piece: Piece) -> Iterator[Document]:
    """Yield the documents of a piece; raise OSError if the Hub cannot be reached, so that the build can be resumed."""
    if piece.path.endswith(".parquet") and _is_remote(piece.path):
        with hub_loading.one_line_errors(piece.path), open_data_file(piece.path, piece.path) as file:
            yield from read_rows(piece, file, _remote_metadata(piece.path))
    elif piece.path.endswith(".parquet"):
        yield from parquet.read_piece(piece)
    elif "rows" in json.loads(piece.selection):
        yield from _read_prepared(piece)
    else:
        yield from _read_stream(piece)


def _tell_passed_over(where: str, folder: Path, data_files: dict[str, Any]) -> None:
    """Print which files of a local folder `datasets` reads in no split: it follows no links to folders, for example."""
    read = {os.path.realpath(str(file)) for files in data_files.values() for file in files}
    tree = Tree(folder)
    others = [path for path in tree.files if os.path.realpath(path) not in read]
    tell_passed_over(f"hub={where}", others + tree.others, folder)


def _name_and_config(place: str) -> tuple[str, str | None]:
    if os.path.isdir(os.path.expanduser(place)):
        return os.path.expanduser(place), None
    name, _, config = place.rpartition(":") if ":" in place else (place, "", "")
    return os.path.expanduser(name), config or None


def _require_split(where: str, split: str, splits: Collection[str]) -> None:
    if split not in splits:
        raise ValueError(f"hub={where}: no split {split!r} (splits: {', '.join(splits)})")


def _is_remote(path: str) -> bool:
    return "://" in path


def open_data_file(where: str, path: str) -> Any:
    """Open a data file for random access."""
    if not _is_remote(path):
        return open(path, "rb")
    if hub_loading.is_offline():
        raise ValueError(
            f"hub={where}: the build was planned online, but HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set now"
        )
    import fsspec

    filesystem, inner = fsspec.core.url_to_fs(path)
    return filesystem.open(inner, "rb", cache_type="none")


def _pieces_of_parquet(where: str, path: str, options: dict[str, str]) -> list[Piece]:
    """List the pieces of a Parquet file. A remote row group is never cut: each part would fetch it from its start."""
    with hub_loading.one_line_errors(where), open_data_file(where, path) as file:
        return rows_as_pieces(KIND.name, path, file, options, where, cut_row_groups=not _is_remote(path))


@functools.lru_cache(maxsize=4)
def _remote_metadata(path: str) -> Any:
    """Return the footer of a remote file; its URL contains the commit, so the footer cannot change."""
    with open_data_file(path, path) as file:
        return open_table(path, file).metadata


def _pieces_of_prepared(where: str, builder: Any, split: str, options: dict[str, str]) -> list[Piece]:
    _require_split(where, split, builder.info.splits or {})
    with hub_loading.one_line_errors(where):
        files = [entry["filename"] for entry in builder.as_dataset(split).cache_files]
    pieces = []
    for path in files:
        table = _arrow_file(path).data
        columns = choose_columns(table.schema, options, where, path)
        size = table.column(columns.text).nbytes
        for first, end, start, stop in cut_rows(table.num_rows, size, max(1, size // PIECE_BYTES), columns.join_rows):
            pieces.append(Piece(KIND.name, path, start, stop, str(RowRange(first, end, columns))))
    return pieces


def _read_prepared(piece: Piece) -> Iterator[Document]:
    wanted = RowRange.parse(piece.selection)
    dataset = _arrow_file(piece.path)
    step = batch_rows(wanted.end - wanted.first, piece.bytes)
    names = wanted.columns.names()
    ranges = ((first, min(first + step, wanted.end)) for first in range(wanted.first, wanted.end, step))
    batches = (dataset.data.table.slice(first, end - first).select(names) for first, end in ranges)
    yield from documents_of(batches, wanted.first, wanted.columns, piece.path)


@functools.lru_cache(maxsize=2)
def _arrow_file(path: str) -> Any:
    """Map a file of the cache of `datasets` into memory."""
    return hub_loading.quiet_datasets().Dataset.from_file(path)


def _pieces_of_stream(where: str, builder: Any, split: str, files: list[str], options: dict[str, str]) -> list[Piece]:
    with hub_loading.one_line_errors(where):
        stream = builder.as_streaming_dataset(split)
        shards = stream.num_shards
        first_batch = next(stream.with_format("arrow").iter(1), None)
        sizes = _file_sizes(where, files)
    if first_batch is None:
        return []
    columns = choose_columns(first_batch.schema, options, where, f"hub={where}")
    if shards != len(files):
        sizes = [max(sum(sizes) // shards, 1)] * shards
    place, given = split_options(where, (*OPTIONS, "split", "revision"))
    name, config = _name_and_config(place)
    # Each piece names the commit that was found, so that all tasks read the same data.
    revision = builder.hash if any(_is_remote(file) for file in files) else given.get("revision")
    pieces, offset = [], 0
    for shard, size in enumerate(sizes):
        chosen = {"config": config, "split": split, "revision": revision, "columns": dataclasses.astuple(columns)}
        selection = selection_text(**chosen, shard=shard, shards=shards)
        pieces.append(Piece(KIND.name, name, offset, offset + max(size, 1), selection))
        offset += max(size, 1)
    return pieces


def _file_sizes(where: str, files: list[str]) -> list[int]:
    """Return the size of each data file in bytes; for a file inside an archive, the size of the archive."""
    import fsspec

    sizes = []
    for file in files:
        filesystem, path = fsspec.core.url_to_fs(file.rpartition("::")[2])
        sizes.append(int(filesystem.info(path).get("size") or 1))
    return sizes


def _read_stream(piece: Piece) -> Iterator[Document]:
    content = json.loads(piece.selection)
    columns = Columns(*content["columns"])
    where = f"{piece.path}:{content['config']}" if content["config"] else piece.path
    stream = _stream(where, piece.path, content["config"], content["revision"], content["split"])
    shard, shards = content["shard"], content["shards"]
    place = f"{where} file {shard + 1} of {shards}"
    with hub_loading.one_line_errors(place):
        if stream.num_shards != shards:
            raise ValueError(f"hub={where}: has {stream.num_shards} files, but had {shards} when it was listed")
        rows = stream.shard(shards, shard).with_format("arrow").select_columns(columns.names())
        yield from documents_of(rows.iter(_STREAM_BATCH_ROWS), 0, columns, f"hub={place}")


@functools.lru_cache(maxsize=1)
def _stream(where: str, name: str, config: str | None, revision: str | None, split: str) -> Any:
    builder = hub_loading.load_builder(where, name, config, revision)
    with hub_loading.one_line_errors(where):
        return builder.as_streaming_dataset(split)


KIND = SourceKind(
    "hub", "a data set of the Hugging Face Hub, streamed; ,split=NAME ,column=NAME ,revision=NAME",
    "hub=wikimedia/wikipedia:20231101.en", list_pieces, read_piece,
)  # fmt: skip
