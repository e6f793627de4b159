"""Finds the files of a source. It follows links, fails on what cannot be read, and prints what it passes over."""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_COMPRESSED = r"(?:\.(?:gz|bz2|xz|zst))?"
MOST_NAMES = 3


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of the files that a kind reads in a folder."""

    pattern: re.Pattern[str]
    words: str
    """What the names have in common, for messages."""

    @classmethod
    def ending(cls, *suffixes: str, compressed: bool = True) -> Names:
        """Return the names that end in one of the suffixes, in capitals or not, also compressed ones."""
        either = "|".join(map(re.escape, suffixes))
        pattern = re.compile(f"(?:{either}){_COMPRESSED if compressed else ''}$", re.IGNORECASE)
        return cls(pattern, f" ending in {' or '.join(suffixes)}")


ANY_NAME = Names(re.compile(""), "")


def find_files(where: str, names: Names = ANY_NAME) -> list[Path]:
    """Return a file, the files of a folder, or the files that match a glob (`**` matches any depth), sorted by name.

    A folder is searched with all its sub-folders for files with one of the names, without hidden files. Links are
    followed; a folder that can be reached in several ways is read once. What is passed over is printed.

    Raises:
        ValueError: nothing is found, or a link is broken.
        OSError: a folder cannot be read.
    """
    place = Path(os.path.expanduser(where))
    if place.is_dir():
        tree = Tree(place)
        found = [path for path in tree.files if names.pattern.search(path.name)]
        others = [path for path in tree.files if not names.pattern.search(path.name)] + tree.others
        if not found:
            instead = f" (but {_listed(others, place)})" if others else ""
            raise ValueError(f"{where}: the folder holds no files{names.words}{instead}")
    elif place.exists() or place.is_symlink():
        if _kind_of(place) != "file":
            raise ValueError(f"{where}: neither a file nor a folder; write the text to a file")
        return [place]
    else:
        matches = sorted(set(_matches(Path(), Path(place).parts)), key=str) if glob.has_magic(str(place)) else []
        found = [path for path in matches if _kind_of(path) == "file"]
        others = [path for path in matches if _kind_of(path) != "file"]
        if not found:
            instead = f"; it matches {_listed(others, Path())}" if others else ""
            raise ValueError(f"{where}: no such file, and no file matches it as a glob{instead}")
    tell_passed_over(where, others, place if place.is_dir() else Path())
    return sorted(found, key=str)


def tell_passed_over(where: str, paths: Sequence[Path], folder: Path) -> None:
    """Print, in one line on standard error, how many files and folders are not read, and the first names."""
    if paths:
        print(f"{where}: passed over {_listed(paths, folder)}", file=sys.stderr)


def _listed(paths: Sequence[Path], folder: Path) -> str:
    inside = sorted(str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path) for path in paths)
    more = f" and {len(paths) - MOST_NAMES:,} more" if len(paths) > MOST_NAMES else ""
    return f"{len(paths):,} other{'s' if len(paths) > 1 else ''}: {', '.join(inside[:MOST_NAMES])}{more}"


class Tree:
    """A folder with its sub-folders, each once: real ones under their own names, then those that links add.

    A broken link is a ValueError, and a folder that cannot be read an OSError.
    """

    def __init__(self, top: Path) -> None:
        self.folders: list[Path] = []
        self.files: list[Path] = []
        self.others: list[Path] = []
        """Hidden files and folders; pipes, sockets and devices."""
        seen: set[tuple[int, int]] = set()
        waiting, linked = [top], list[Path]()
        while waiting or linked:
            folder = waiting.pop() if waiting else linked.pop(0)
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            self.folders.append(folder)
            for path in _entries(folder):
                if path.name.startswith("."):
                    self.others.append(path)
                elif (kind := _kind_of(path)) == "folder":
                    (linked if path.is_symlink() else waiting).append(path)
                else:
                    (self.files if kind == "file" else self.others).append(path)


def _entries(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [folder / name for name in sorted(entry.name for entry in entries)]


def _kind_of(path: Path) -> str:
    """Return `file`, `folder` or `other`; a link counts as its target, and a broken one is a ValueError."""
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        raise
    except OSError:
        if not path.is_symlink():
            raise
        raise ValueError(f"{path}: broken link to {os.readlink(path)}; remove it, or restore its target") from None
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def _matches(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Yield what matches the parts of a glob below a folder; unlike `glob`, fail on a folder that cannot be read."""
    if not parts:
        yield folder
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        tree = Tree(folder)
        for below in tree.folders:
            yield from _matches(below, rest) if rest else [below]
        yield from () if rest else tree.files
    elif glob.has_magic(first):
        for path in _entries(folder):
            hidden = path.name.startswith(".") and not first.startswith(".")
            if fnmatch.fnmatchcase(path.name, first) and not hidden and (not rest or _kind_of(path) == "folder"):
                yield from _matches(path, rest)
    else:
        path = folder / first
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        if not rest or _kind_of(path) == "folder":
            yield from _matches(path, rest)
