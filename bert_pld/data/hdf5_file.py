"""Opening a shard's HDF5 file for reading: without locks, with errors that name the cause, and its own datasets only.

A data directory may come from anybody, and an HDF5 file can make a reader return the bytes of another file (external
links, external storage, virtual datasets) or load a compiled plugin for a filter. Shards need none of these, so each is
rejected before anything is read through it.

HDF5 locks a file that it reads, although shards never change. Some file systems have no locks (NFS without its lock
daemon, Lustre without `flock`, many FUSE systems), so shards are opened without. The variable HDF5_USE_FILE_LOCKING
overrides that inside HDF5.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
from h5py import h5z

# The filters built into HDF5 and h5py; for any other number HDF5 would load a shared library.
_BUILT_IN_FILTERS = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, h5z.FILTER_SZIP}
_BUILT_IN_FILTERS |= {h5z.FILTER_NBIT, h5z.FILTER_SCALEOFFSET, h5z.FILTER_LZF}
_LOCKING_VARIABLE = "HDF5_USE_FILE_LOCKING"


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
