"""Files that many parts share: names in a run's folder, atomic writes, SHA-256, and the identity of this machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# A run's folder (`--output_dir`).
METRICS, CONFIG, CHECKPOINTS, RUN_LOCK = "metrics.jsonl", "config.json", "checkpoints", "run.lock"
DIVERGED = "diverged.json"
"""Exists after a run that ended because its loss was not finite: the `step`, and the `rank` that had it."""
# A checkpoint's folder, which also holds a copy of `CONFIG`.
LATEST, CHECKSUMS, WEIGHTS, STATE = "latest", "checksums.json", "model.safetensors", "state.json"
# The tokenizer's files, in a data directory, a run's folder and a checkpoint.
TOKENIZER, VOCABULARY = "tokenizer.json", "vocab.txt"

PARTIAL = ".partial"
"""Suffix of a file or folder that is still being written."""


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
        file.write(text.encode("utf-8"))


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
