"""Keeps what is read of a data directory within it: a name with a directory and a symlink to outside are rejected.

A data directory may come from anybody; without these checks it could make a reader open any file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def require_plain_name(name: object, where: Path) -> None:
    """Raise a ValueError unless a file name in a list has no directory, so that the file lies beside the list."""
    if not isinstance(name, str) or name in ("", ".", "..") or any(letter in name for letter in "/\\\0"):
        raise ValueError(f"{where}: file name {name!r} not allowed; must be a name without a directory")


def reject_links_outside(directory: Path, names: Iterable[str] | None = None, root: Path | None = None) -> None:
    """Raise a ValueError if one of a directory's entries (None: of all) is a symlink that leaves `root`.

    `root` is the directory itself by default, and may be reached through a symlink.
    """
    with os.scandir(directory) as entries:
        links = [entry.name for entry in entries if entry.is_symlink()]
    checked = set(links if names is None else names)
    root = (root or directory).resolve()
    for name in sorted(checked.intersection(links)):
        target = (directory / name).resolve()
        if not target.is_relative_to(root):
            raise ValueError(
                f"{directory / name}: symlink to {target}, outside its directory; replace it with a copy, or add"
                " --follow_links if you trust who made the directory: a link can name any file that you can read"
            )
