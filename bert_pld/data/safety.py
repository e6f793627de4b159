"""What files from others may not do: lead out of their directory, or out of their HDF5 file.

A data directory may come from anybody. Its manifest names files, its entries may be links, and an HDF5 file can hand a
reader another file's bytes (external links, external storage, virtual datasets) or have it load a compiled plugin for
a filter. None of these is needed for shards, so each is refused before anything is read through it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import h5py

# Filters that are part of HDF5 and h5py; for another number HDF5 would load a shared library.
_BUILT_IN_FILTERS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT,
    h5py.h5z.FILTER_SCALEOFFSET,
    h5py.h5z.FILTER_LZF,
}


def require_plain_name(name: object, where: Path) -> None:
    """A file that a list names lies beside the list.

    Raises:
        ValueError: the name is no string, is empty, or has a directory in it.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or any(letter in name for letter in "/\\\0"):
        raise ValueError(f"{where}: names the file {name!r}; must be a name without a directory")


def refuse_links_out(directory: Path, names: Iterable[str] | None = None) -> None:
    """Links among a directory's entries lead to places in it. The directory itself may be reached by any link.

    Args:
        directory: read once; only its links are looked at closer.
        names: the entries that count; by default all.

    Raises:
        ValueError: an entry is a link that leads out (entry named).
    """
    with os.scandir(directory) as entries:
        links = [entry.name for entry in entries if entry.is_symlink()]
    counted = set(links if names is None else names)
    root = directory.resolve()
    for name in sorted(counted.intersection(links)):
        target = (directory / name).resolve()
        if not target.is_relative_to(root):
            raise ValueError(
                f"{directory / name}: a link that leads out of its directory, to {target}; put a copy there"
            )


def own_dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose bytes lie in this very file.

    Raises:
        KeyError: there is none of this name.
        ValueError: it is a link, lies in another file, or needs a filter that HDF5 would have to load.
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
        raise ValueError(f"{path}: dataset {name} has its values in another file; they must be in this one")
    filters = {properties.get_filter(index)[0] for index in range(properties.get_nfilters())}
    if filters - _BUILT_IN_FILTERS:
        raise ValueError(
            f"{path}: dataset {name} needs the HDF5 filter {min(filters - _BUILT_IN_FILTERS)}, which is no part of HDF5"
        )
    return dataset
