"""Reject symlinks and HDF5 links that leave the data directory.

A data directory may come from anybody. Its manifest names files, its entries may be symlinks, and an HDF5 file can
make a reader return the bytes of another file (external links, external storage, virtual datasets) or load a compiled
plugin for a filter. Shards need none of these, so each is rejected before anything is read through it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import h5py
from h5py import h5z

# The filters built into HDF5 and h5py; for any other number HDF5 would load a shared library.
_BUILT_IN_FILTERS = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, h5z.FILTER_SZIP}
_BUILT_IN_FILTERS |= {h5z.FILTER_NBIT, h5z.FILTER_SCALEOFFSET, h5z.FILTER_LZF}


def require_plain_name(name: object, where: Path) -> None:
    """Raise a ValueError unless a file name in a list has no directory, so that the file lies beside the list."""
    if not isinstance(name, str) or name in ("", ".", "..") or any(letter in name for letter in "/\\\0"):
        raise ValueError(f"{where}: file name {name!r} not allowed; must be a name without a directory")


def reject_links_outside(directory: Path, names: Iterable[str] | None = None) -> None:
    """Raise a ValueError if one of a directory's entries (None: of all) is a symlink that leaves the directory.

    The directory itself may be a symlink.
    """
    with os.scandir(directory) as entries:
        links = [entry.name for entry in entries if entry.is_symlink()]
    checked = set(links if names is None else names)
    root = directory.resolve()
    for name in sorted(checked.intersection(links)):
        target = (directory / name).resolve()
        if not target.is_relative_to(root):
            raise ValueError(f"{directory / name}: symlink to {target}, outside its directory; replace it with a copy")


def contained_dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset whose values are stored in this file.

    Raises:
        KeyError: there is no dataset of this name.
        ValueError: it is a link, its values are in another file, or it needs a filter that HDF5 would have to load.
    """
    link = file.get(name, getlink=True)
    if link is None:
        raise KeyError(f"no dataset {name}")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{path}: {name} is a link ({type(link).__name__}); must be a dataset of this file")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{path}: {name} is not a dataset")
    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise ValueError(f"{path}: dataset {name} has its values in another file; must be in this file")
    filters = {properties.get_filter(index)[0] for index in range(properties.get_nfilters())}
    if filters - _BUILT_IN_FILTERS:
        raise ValueError(
            f"{path}: dataset {name} needs the HDF5 filter {min(filters - _BUILT_IN_FILTERS)}, a plugin; only HDF5's"
            " built-in filters are allowed"
        )
    return dataset
