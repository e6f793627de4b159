"""Shards of NVIDIA's format unpacked for random reads: a cache of memory-mapped files, one a shard.

A gzip-compressed shard gives random rows a hundred times more slowly than a mapped file, so each is unpacked once, by
whichever process comes first, into `$BERT_PLD_CACHE` or else `~/.cache/bert_pld` (under `$XDG_CACHE_HOME` where that is
set). The name is a digest of the shard's path, size and time of change; a file appears only whole, and may be removed
whenever no run uses it. A file is a JSON header, padded with spaces to 4 KiB, and then the columns, each at the offset
that the header says; ids are uint16, or uint32 for a vocabulary of more than 65,536 entries.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bert_pld.data.mapped_file import map_file
from bert_pld.data.nvidia_format import Header, read_blocks

CACHE_VARIABLE = "BERT_PLD_CACHE"

_KIND = "bert_pld unpacked shard 1"
_HEADER_BYTES = 4096
_ALIGNMENT = 64
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_directory() -> Path:
    """Where unpacked shards are kept, as the environment says."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bert_pld"


@dataclasses.dataclass(frozen=True)
class PackedShard:
    """A shard as it was when the data directory was opened."""

    path: Path
    header: Header
    token_dtype: type[np.unsignedinteger[Any]]
    """What holds every id of the vocabulary."""
    bytes: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path, header: Header, token_dtype: type[np.unsignedinteger[Any]]) -> PackedShard:
        """The shard as it is now."""
        status = path.stat()
        return cls(path, header, token_dtype, status.st_size, status.st_mtime_ns)

    @property
    def key(self) -> str:
        """The name that the unpacked shard has in the cache, without suffix."""
        identity = [_KIND, str(self.path.resolve()), self.bytes, self.changed_ns, np.dtype(self.token_dtype).str]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]

    @property
    def file(self) -> Path:
        """Where the unpacked shard is, once it is."""
        return cache_directory() / f"{self.key}.rows"


class UnpackedShard:
    """An unpacked shard, mapped: `rows`, `tokens`, `largest_id`, and `columns` named as by `read_blocks`."""

    def __init__(self, file: Path) -> None:
        with open(file, "rb") as opened:
            content = json.loads(opened.read(_HEADER_BYTES))
        if content["kind"] != _KIND or content["bytes"] != file.stat().st_size:
            raise ValueError(f"{file}: damaged; remove it, and it is made anew")
        self.rows, self.tokens, self.largest_id = (int(content[name]) for name in ("rows", "tokens", "largest_id"))
        self.path, mapped = file, map_file(file)
        self.columns: dict[str, NDArray[Any]] = {}
        self.offsets: dict[str, int] = {}
        for name, (dtype, shape, offset) in content["columns"].items():
            end = offset + math.prod(shape) * np.dtype(dtype).itemsize
            self.columns[name] = mapped[offset:end].view(dtype).reshape(shape)
            self.offsets[name] = offset


def unpacked(source: PackedShard) -> UnpackedShard:
    """The unpacked shard, made now if it is not there.

    Raises:
        ValueError: the shard is damaged, has changed since it was opened, or there is no room to unpack it.
    """
    unpack_all([source])
    return UnpackedShard(source.file)


def unpack_all(sources: Sequence[PackedShard]) -> None:
    """Unpack those shards that are not unpacked yet. Processes that do the same at the same time share the work.

    Raises:
        ValueError: a shard is damaged or has changed since it was opened, or there is no room.
    """
    waiting = [source for source in sources if not source.file.is_file()]
    if not waiting:
        return
    directory = cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _check_room(directory, waiting)
        if len(waiting) > 1 and os.environ.get("RANK", "0") == "0":
            size = sum(_layout(source)[1] for source in waiting) / 1e9
            print(f"unpacking {len(waiting)} shards into {directory} ({size:.1f} GB)", file=sys.stderr, flush=True)
        while waiting:
            left = [source for source in waiting if not _unpack_if_free(directory, source, wait=False)]
            if len(left) == len(waiting):  # others are at work on all of these
                _unpack_if_free(directory, left[0], wait=True)
                left = left[1:]
            waiting = [source for source in left if not source.file.is_file()]
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise _no_room(directory, error.strerror or "") from error
        raise ValueError(f"{directory}: cannot unpack shards here ({error}); set {CACHE_VARIABLE}") from error


def _unpack_if_free(directory: Path, source: PackedShard, wait: bool) -> bool:
    """Unpack a shard unless another process is about it; whether it is there now."""
    with _lock(directory / f".{source.key}.lock", wait) as got:
        if not got:
            return False
        if not source.file.is_file():
            for leftover in directory.glob(f".{source.key}.*.partial"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            _unpack(directory, source)
    return True


@contextlib.contextmanager
def _lock(path: Path, wait: bool) -> Iterator[bool]:
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            yield False
            return
        yield True


def _unpack(directory: Path, source: PackedShard) -> None:
    aside = directory / f".{source.key}.{os.getpid()}.partial"
    try:
        with open(aside, "w+b") as file:
            _write(file, source)
            file.flush()
            os.fsync(file.fileno())
        if PackedShard.of(source.path, source.header, source.token_dtype) != source:
            raise ValueError(f"{source.path}: has changed since it was opened")
        os.replace(aside, source.file)
    finally:
        aside.unlink(missing_ok=True)


def _write(file: BinaryIO, source: PackedShard) -> None:
    """Columns at their places; all the room is taken before the first row is read."""
    layout, size = _layout(source)
    _reserve(file, size)
    tokens = largest_id = 0
    for first, block in read_blocks(source.path):
        tokens += int(block["length"].sum())
        largest_id = max(largest_id, *(int(block[name].max(initial=0)) for name in ("input_ids", "mask_inputs")))
        if largest_id > np.iinfo(source.token_dtype).max:
            raise ValueError(f"{source.path}: holds token id {largest_id}, beyond the vocabulary")
        for name, (dtype, shape, offset) in layout.items():
            file.seek(offset + first * dtype.itemsize * math.prod(shape[1:]))
            file.write(np.ascontiguousarray(block[name], dtype).data)
    content = {
        "kind": _KIND,
        "bytes": size,
        "rows": source.header.rows,
        "tokens": tokens,
        "largest_id": largest_id,
        "columns": {name: [dtype.str, shape, offset] for name, (dtype, shape, offset) in layout.items()},
    }
    file.seek(0)
    file.write(json.dumps(content).encode().ljust(_HEADER_BYTES))


def _layout(source: PackedShard) -> tuple[dict[str, tuple[np.dtype[Any], tuple[int, ...], int]], int]:
    """Type, shape and offset of each column, and the size of the file."""
    header, ids = source.header, np.dtype(source.token_dtype)
    of_row, of_mask = (header.rows, header.seq_length), (header.rows, header.predictions)
    columns: dict[str, tuple[Any, tuple[int, ...]]] = {
        "input_ids": (ids, of_row),
        "length": (np.uint16, (header.rows,)),
        "segment_b_start": (np.uint16, (header.rows,)),
        "next_sentence_label": (np.int8, (header.rows,)),
        "mask_count": (np.uint16, (header.rows,)),
        "mask_positions": (np.uint16, of_mask),
        "mask_inputs": (ids, of_mask),
    }
    layout, offset = {}, _HEADER_BYTES
    for name, (dtype, shape) in columns.items():
        layout[name] = (np.dtype(dtype), shape, offset)
        offset += -(-np.dtype(dtype).itemsize * math.prod(shape) // _ALIGNMENT) * _ALIGNMENT
    return layout, offset


def _reserve(file: BinaryIO, size: int) -> None:
    """Take the room on the disk, so that a full one is known at once and a map never meets a hole in it."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def _check_room(directory: Path, waiting: Sequence[PackedShard]) -> None:
    """Refuse before anything is written where all that is to be unpacked cannot fit; what others write now counts."""
    free = shutil.disk_usage(directory).free
    for partial in directory.glob(".*.partial"):
        with contextlib.suppress(FileNotFoundError):
            free += partial.stat().st_size
    needed = sum(_layout(source)[1] for source in waiting if not source.file.is_file())
    if needed > free:
        raise _no_room(directory, f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free")


def _no_room(directory: Path, why: str) -> ValueError:
    return ValueError(f"{directory}: no room to unpack shards ({why}); free some, or set {CACHE_VARIABLE}")
