"""Shards in NVIDIA's format unpacked for random reads: a cache of memory-mapped files, one per shard.

Random reads of a gzip-compressed shard are far slower than random reads of a mapped file, so the first process that
needs a shard unpacks it, into `$BERT_PLD_CACHE` or else `~/.cache/bert_pld` (`$XDG_CACHE_HOME/bert_pld` if that is set;
`bert_pld-<uid>` in the folder for temporary files for a user without a home). The file's name is a digest of the
shard's path, size and modification time. A file appears only when complete; it may be removed when no run uses it. It
has a JSON header, padded with spaces to 4 KiB, and the columns, each at the offset in the header. Token ids are uint16,
or uint32 for a vocabulary of more than 65,536 entries.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bert_pld.data.nvidia_format import Header, read_blocks
from bert_pld.data.opening import map_file
from bert_pld.files import PARTIAL, FileLock, locked, written_aside

CACHE_VARIABLE = "BERT_PLD_CACHE"

_KIND = "bert_pld unpacked shard 2"
_HEADER_BYTES = 4096
_ALIGNMENT = 64
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_directory() -> Path:
    """Return the folder for unpacked shards, from the environment."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "bert_pld"
    try:
        return Path.home() / ".cache" / "bert_pld"
    except RuntimeError:  # No HOME, and a user that this machine does not know: common in containers.
        directory = Path(tempfile.gettempdir()) / f"bert_pld-{os.getuid()}"
    if directory.exists() and directory.stat().st_uid != os.getuid():  # Anybody may make a folder there.
        raise ValueError(f"{directory}: belongs to another user; set {CACHE_VARIABLE} to a folder of your own")
    return directory


@dataclasses.dataclass(frozen=True)
class PackedShard:
    """A compressed shard, as it was when the data directory was opened."""

    path: Path
    header: Header
    token_dtype: type[np.unsignedinteger[Any]]
    """Type for the token ids of the vocabulary."""
    bytes: int
    changed_ns: int

    @classmethod
    def inspect(cls, path: Path, header: Header, token_dtype: type[np.unsignedinteger[Any]]) -> PackedShard:
        """Return the shard at `path` with its current size and modification time."""
        status = path.stat()
        return cls(path, header, token_dtype, status.st_size, status.st_mtime_ns)

    @property
    def key(self) -> str:
        """Name of the unpacked shard in the cache, without suffix."""
        identity = [_KIND, str(self.path.resolve()), self.bytes, self.changed_ns, np.dtype(self.token_dtype).str]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]

    @property
    def file(self) -> Path:
        """Path of the unpacked shard, which may not exist yet."""
        return cache_directory() / f"{self.key}.rows"


class UnpackedShard:
    """A mapped unpacked shard: `rows`, `tokens`, `largest_id`, and `columns` with the names of `read_blocks`.

    A damaged file is a ValueError.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._open(file)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{file}: damaged; remove it, the next run unpacks the shard again") from error

    def _open(self, file: Path) -> None:
        with open(file, "rb") as opened:
            content = json.loads(opened.read(_HEADER_BYTES))
        if content["kind"] != _KIND or content["bytes"] != file.stat().st_size:
            raise ValueError
        self.rows, self.tokens, self.largest_id = (int(content[name]) for name in ("rows", "tokens", "largest_id"))
        start = content["other_start"]
        self.other_start = None if start is None else (int(start[0]), int(start[1]))
        """The first row that begins with another id than row 0, and this id; None if all begin with the same one."""
        self.path, mapped = file, map_file(file)
        self.columns: dict[str, NDArray[Any]] = {}
        self.offsets: dict[str, int] = {}
        for name, (dtype, shape, offset) in content["columns"].items():
            end = offset + math.prod(shape) * np.dtype(dtype).itemsize
            self.columns[name] = mapped[offset:end].view(dtype).reshape(shape)
            self.offsets[name] = offset


def unpack_all(shards: Sequence[PackedShard]) -> None:
    """Unpack the shards that are not unpacked yet. Processes that do this at the same time share the work.

    A shard that is damaged or was changed since it was opened is a ValueError, and so is a full disk.
    """
    waiting = [shard for shard in shards if not shard.file.is_file()]
    if not waiting:
        return
    directory = cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _check_space(directory, waiting)
        if len(waiting) > 1 and os.environ.get("RANK", "0") == "0":
            size = sum(_layout(shard)[1] for shard in waiting) / 1e9
            print(f"unpacking {len(waiting)} shards into {directory} ({size:.1f} GB)", file=sys.stderr, flush=True)
        while waiting:
            left = [shard for shard in waiting if not _unpack_if_free(directory, shard, wait=False)]
            if len(left) == len(waiting):  # other processes are unpacking all of these: wait for one
                _unpack_if_free(directory, left[0], wait=True)
                left = left[1:]
            waiting = [shard for shard in left if not shard.file.is_file()]
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise _no_space(directory, error.strerror or "") from error
        raise ValueError(f"{directory}: cannot unpack shards here ({error}); set {CACHE_VARIABLE}") from error


def _unpack_if_free(directory: Path, shard: PackedShard, wait: bool) -> bool:
    """Unpack a shard; return False if another process is doing so and `wait` is not set."""
    with locked(directory / f".{shard.key}.lock", wait) as obtained:
        if obtained is FileLock.BUSY:
            return False
        if not shard.file.is_file():
            if obtained is FileLock.HELD:  # Without locks, another process may be writing its own copy.
                for leftover in directory.glob(f".{shard.key}.*{PARTIAL}"):  # from a killed process
                    leftover.unlink(missing_ok=True)
            _unpack(shard)
    return True


def _unpack(shard: PackedShard) -> None:
    with written_aside(shard.file) as file:
        _write(file, shard)
        if PackedShard.inspect(shard.path, shard.header, shard.token_dtype) != shard:
            raise ValueError(f"{shard.path}: was changed since it was opened")


def _write(file: BinaryIO, shard: PackedShard) -> None:
    """Write header and columns; the disk space is reserved before the first row is read."""
    layout, size = _layout(shard)
    _reserve(file, size)
    tokens = largest_id = 0
    first_id = other_start = None
    for first, block in read_blocks(shard.path):
        tokens += int(block["length"].sum())
        largest_id = max(largest_id, *(int(block[name].max(initial=0)) for name in ("input_ids", "mask_inputs")))
        starts = block["input_ids"][:, 0]
        first_id = int(starts[0]) if first_id is None else first_id
        if other_start is None and (differs := starts != first_id).any():
            row = int(differs.argmax())
            other_start = first + row, int(starts[row])
        if largest_id > np.iinfo(shard.token_dtype).max:
            raise ValueError(f"{shard.path}: has token id {largest_id}, outside the vocabulary")
        for name, (dtype, shape, offset) in layout.items():
            file.seek(offset + first * dtype.itemsize * math.prod(shape[1:]))
            file.write(np.ascontiguousarray(block[name], dtype).data)
    content = {
        "kind": _KIND,
        "bytes": size,
        "rows": shard.header.rows,
        "tokens": tokens,
        "largest_id": largest_id,
        "other_start": other_start,
        "columns": {name: [dtype.str, shape, offset] for name, (dtype, shape, offset) in layout.items()},
    }
    file.seek(0)
    file.write(json.dumps(content).encode().ljust(_HEADER_BYTES))


def _layout(shard: PackedShard) -> tuple[dict[str, tuple[np.dtype[Any], tuple[int, ...], int]], int]:
    """Return type, shape and offset of each column, and the size of the file."""
    header, ids = shard.header, np.dtype(shard.token_dtype)
    per_token, per_mask = (header.rows, header.seq_length), (header.rows, header.predictions)
    columns: dict[str, tuple[Any, tuple[int, ...]]] = {
        "input_ids": (ids, per_token),
        "length": (np.uint16, (header.rows,)),
        "segment_b_start": (np.uint16, (header.rows,)),
        "next_sentence_label": (np.int8, (header.rows,)),
        "mask_count": (np.uint16, (header.rows,)),
        "mask_positions": (np.uint16, per_mask),
        "mask_inputs": (ids, per_mask),
    }
    layout, offset = {}, _HEADER_BYTES
    for name, (dtype, shape) in columns.items():
        layout[name] = (np.dtype(dtype), shape, offset)
        offset += -(-np.dtype(dtype).itemsize * math.prod(shape) // _ALIGNMENT) * _ALIGNMENT
    return layout, offset


def _reserve(file: BinaryIO, size: int) -> None:
    """Reserve the disk space, so that a full disk is an error now and not a bus error when a map reads a hole."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except (AttributeError, OSError) as error:  # not on macOS, nor on every file system
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        file.truncate(size)


def _check_space(directory: Path, waiting: Sequence[PackedShard]) -> None:
    """Raise before anything is written if the shards cannot fit."""
    free = shutil.disk_usage(directory).free
    # Other processes are unpacking some of these shards: `needed` includes the space that they have reserved.
    for partial in directory.glob(f".*{PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):
            free += partial.stat().st_size
    needed = sum(_layout(shard)[1] for shard in waiting if not shard.file.is_file())
    if needed > free:
        raise _no_space(directory, f"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")


def _no_space(directory: Path, why: str) -> ValueError:
    return ValueError(f"{directory}: no space to unpack shards ({why}); free some, or set {CACHE_VARIABLE}")
