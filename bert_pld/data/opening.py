"""Opening a shard's file: as HDF5, mapped into memory without an open descriptor, or read ahead.

A data directory may come from anybody, and an HDF5 file can make a reader return the bytes of another file (external
links, external storage, virtual datasets) or load a compiled plugin for a filter. Shards need none of these, so each is
rejected before anything is read through it.

HDF5 locks a file that it reads, although shards never change. Some file systems have no locks (NFS without its lock
daemon, Lustre without `flock`, many FUSE systems), so shards are opened without. The variable HDF5_USE_FILE_LOCKING
overrides that inside HDF5.

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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5z
from numpy.typing import NDArray

# The filters built into HDF5 and h5py; for any other number HDF5 would load a shared library.
_BUILT_IN_FILTERS = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, h5z.FILTER_SZIP}
_BUILT_IN_FILTERS |= {h5z.FILTER_NBIT, h5z.FILTER_SCALEOFFSET, h5z.FILTER_LZF}
_LOCKING_VARIABLE = "HDF5_USE_FILE_LOCKING"
_MAP_FAILED = ctypes.c_void_p(-1).value
_READ_AHEAD_BYTES = 128 << 10
"""Linux's usual limit for one request; it may ignore the rest of a longer one."""


class ShardError(ValueError):
    """A shard that cannot be read, is damaged, or does not have the expected contents; names the file."""


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for a block; whatever fails in the block because of the file is a ShardError."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except ShardError:
        raise
    except Exception as error:  # HDF5 and h5py raise nearly every type for a damaged file.
        raise ShardError(f"{path}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """Return why HDF5 could not read a file: what the system said, or else what is wrong with the contents."""
    number = getattr(error, "errno", None)
    if "unable to lock file" in str(error):
        return (
            f"cannot be locked ({os.strerror(number or 0)}), and {_LOCKING_VARIABLE}="
            f"{os.environ.get(_LOCKING_VARIABLE)} asks for a lock; unset it, or set it to FALSE: reading needs none"
        )
    if number:
        from_hdf5 = getattr(error, "filename", None) is None  # Its texts are long, and end in what the system said.
        return f"cannot be read ({os.strerror(number) if from_hdf5 else error.args[1]})"
    return f"not a readable HDF5 file ({str(error) or type(error).__name__}); it may be cut short or damaged"


def contained_dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset whose values are stored in this file.

    Raises:
        ShardError: there is no dataset of this name, it is a link, its values are in another file, or it needs a filter
            that HDF5 would have to load.
    """
    link = file.get(name, getlink=True)
    if link is None:
        raise ShardError(f"{path}: has no dataset {name}")
    if not isinstance(link, h5py.HardLink):
        raise ShardError(f"{path}: {name} is a link ({type(link).__name__}); must be a dataset of this file")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ShardError(f"{path}: {name} is not a dataset")
    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise ShardError(f"{path}: dataset {name} has its values in another file; must be in this file")
    filters = {properties.get_filter(index)[0] for index in range(properties.get_nfilters())}
    if filters - _BUILT_IN_FILTERS:
        raise ShardError(
            f"{path}: dataset {name} needs the HDF5 filter {min(filters - _BUILT_IN_FILTERS)}, a plugin; only HDF5's"
            " built-in filters are allowed"
        )
    return dataset


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

    The system may ignore the request. It is left out where the file cannot be opened again: a map of a file that was
    replaced or removed is still readable.
    """
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    with suppress(OSError):
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
