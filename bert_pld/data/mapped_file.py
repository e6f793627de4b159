"""Files mapped into memory without an open descriptor, and read-ahead of parts of a file.

Before version 3.13, Python's `mmap` keeps a descriptor open for each map, so a corpus of thousands of shards would
exceed the limit on open files. The system call itself needs no descriptor once the map exists, so we call it directly.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAP_FAILED = ctypes.c_void_p(-1).value
_READ_AHEAD_BYTES = 128 << 10
"""Linux's usual limit for one request; it may ignore the rest of a longer one."""


def map_file(path: Path) -> NDArray[np.uint8]:
    """Return all bytes of a file as a read-only array `[size]`; it is unmapped when its last view is deleted."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if not size:
            return np.empty(0, np.uint8)
        # Some FUSE file systems have no shared maps. For reading, a private one is the same.
        for kind in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
            address = _libc().mmap(None, size, mmap.PROT_READ, kind, descriptor, 0)
            number = ctypes.get_errno()
            if address != _MAP_FAILED or number != errno.ENODEV:
                break
        if address == _MAP_FAILED:
            raise OSError(number, f"cannot be mapped: {os.strerror(number)}", str(path))
    finally:
        os.close(descriptor)
    buffer = (ctypes.c_uint8 * size).from_address(address)
    # Not at interpreter exit, when other threads may still read the map; the system unmaps it anyway.
    weakref.finalize(buffer, _libc().munmap, address, size).atexit = False
    array = np.ctypeslib.as_array(buffer)
    array.flags.writeable = False
    return array


def read_ahead(path: Path, ranges: Iterable[tuple[int, int]]) -> None:
    """Ask the system to load parts of a file, (first byte, number of bytes), into its cache, without waiting.

    The system may ignore the request.
    """
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, count in ranges:
            for offset in range(start, start + count, _READ_AHEAD_BYTES):
                length = min(_READ_AHEAD_BYTES, start + count - offset)
                os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


@functools.lru_cache(maxsize=1)
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    off_t = ctypes.c_long  # on every 64-bit system
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, off_t]
    libc.munmap.restype = ctypes.c_int
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
