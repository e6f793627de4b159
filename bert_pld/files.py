"""Files, for many packages: names in a run's folder, atomic writes, JSON, locks, removal of secrets, digests."""

from __future__ import annotations

import enum
import errno
import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

# A run's folder (`--output_dir`).
METRICS, CONFIG, CHECKPOINTS, RUN_LOCK = "metrics.jsonl", "config.json", "checkpoints", "run.lock"
DIVERGED = "diverged.json"
"""Exists after a run that has diverged: the `step`, and the `rank` whose loss was not finite, if it is known."""
# A checkpoint's folder, which also holds a copy of `CONFIG`.
LATEST, CHECKSUMS, WEIGHTS, STATE = "latest", "checksums.json", "model.safetensors", "state.json"
# The tokenizer's files, in a data directory, a run's folder and a checkpoint.
TOKENIZER, VOCABULARY = "tokenizer.json", "vocab.txt"
TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
TOKENIZER_FILES = (TOKENIZER, VOCABULARY, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP)
"""BERT's tokenizer has the first two, any other all but the second."""

PARTIAL = ".partial"
"""Suffix of a file or folder that is still being written."""

_SECRET_KEY = re.compile(
    r"(^|[_-])(api[_-]?key|access[_-]?key|private[_-]?key|secret([_-]?key)?|(auth[_-]?)?token|passw(or)?d|credentials?)$",
    re.IGNORECASE,
)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only once all of it is on the disk; an error leaves nothing behind."""
    aside = path.with_name(f".{path.name}.{os.urandom(4).hex()}{PARTIAL}")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or all of the new one."""
    with written_aside(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # a file's name in the text may not be UTF-8


def write_json(path: Path, value: Any, indent: int = 2) -> None:
    """Write a value as JSON so that a reader sees the old content or all of the new one (see `finite`)."""
    write_atomically(path, json.dumps(finite(value), indent=indent, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Return a JSON value in which null replaces NaN and infinity, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: finite(of_key) for key, of_key in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of the tokenizer in a data directory, a run's folder or a checkpoint."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def printable(name: str | Path) -> str:
    """Return the name of a file or folder as the same text in every locale; bytes that are not UTF-8 become escapes.

    Python decodes the names on a command line with the locale's encoding.
    """
    name = str(name)
    with suppress(UnicodeEncodeError):
        name = os.fsencode(name).decode("utf-8", "surrogateescape")
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def require_utf8(option: str, path: Path) -> Path:
    """Return a path; raise a ValueError if it is not UTF-8, which libraries that read and write checkpoints require."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeError:
        text = f"{option} {path}: its name is not UTF-8, which checkpoints and models need; rename the folder"
        raise ValueError(text) from None
    return path


def without_secrets(values: Any) -> Any:
    """Return a deep copy of a JSON value without keys that hold secrets and without user names and passwords in URLs.

    A secret key is removed, not overwritten, so that the program that reads the copy uses its environment variable
    (`COMET_API_KEY`).
    """
    if isinstance(values, Mapping):
        return {k: without_secrets(v) for k, v in values.items() if not _SECRET_KEY.search(str(k))}
    if isinstance(values, (list, tuple)):
        return [without_secrets(value) for value in values]
    return _USER_IN_URL.sub("", values) if isinstance(values, str) else values


class FileLock(enum.Enum):
    """What `locked` obtained."""

    HELD = enum.auto()
    BUSY = enum.auto()
    """Another process holds the lock."""
    UNSUPPORTED = enum.auto()
    """The file system has no locks: nothing keeps another process out."""


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[FileLock]:
    """Lock a file for a block, and create it if it is missing; `wait` waits for the process that holds the lock."""
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            obtained = FileLock.HELD
        except OSError as error:  # Without locks, file systems answer with ENOLCK, ENOSYS, EOPNOTSUPP, EINVAL, EIO, …
            is_busy = error.errno in (errno.EAGAIN, errno.EACCES)
            obtained = FileLock.BUSY if is_busy else FileLock.UNSUPPORTED
        yield obtained


def sync_directory(directory: Path) -> None:
    """Flush a directory's entries to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def boot_id() -> str:
    """Return the identity of this boot of this machine, whatever its host name; empty if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
