"""A folder on a local disk for the optimizer states of one engine.

DeepSpeed names its files after ranks and parameters alone and never removes them. In a folder of its own, an engine
never reads another's.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import shutil
import socket
import tempfile
import weakref
from pathlib import Path

from bert_pld.files import boot_id

_PREFIX, _LOCK, _PROBE = "bert_pld-", "lock", "probe"
UNIT_BYTES = 1024
"""DeepSpeed's sizes, offsets and addresses are multiples of it."""


class SwapFolder:
    """A folder for the files of one engine, removed with this object or at the end of the process.

    Its lock ends with the process. A folder that a killed process has left is removed when the next one is made beside
    it.
    """

    def __init__(self, parent: Path) -> None:
        """An OSError is raised if `parent` does not exist or cannot be written to."""
        _remove_abandoned(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        aside = self.path / f".{_LOCK}"
        lock = os.open(aside, os.O_RDWR | os.O_CREAT, 0o600)
        os.write(lock, json.dumps({"host": socket.gethostname(), "boot": boot_id()}).encode())
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.replace(aside, self.path / _LOCK)
        except OSError:  # Without a lock, nobody can know that the folder is abandoned.
            aside.unlink()
        self._finalizer = weakref.finalize(self, _remove, self.path, lock, os.getpid())

    def reserve(self, size: int) -> None:
        """Reserve room in a file until `release`; an OSError says that there is none, or that files cannot be written.

        DeepSpeed reads and writes past the page cache, in multiples of 1 kB, which some file systems and disks refuse.
        """
        file = os.open(self.path / _PROBE, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        try:
            with mmap.mmap(-1, 3 * mmap.PAGESIZE) as pages, memoryview(pages)[UNIT_BYTES : -2 * UNIT_BYTES] as part:
                os.pwrite(file, part, UNIT_BYTES)
                os.preadv(file, [part], UNIT_BYTES)
            os.posix_fallocate(file, 0, max(size, 1))
        finally:
            os.close(file)

    def release(self) -> None:
        """Give the reserved room free."""
        (self.path / _PROBE).unlink(missing_ok=True)


def _remove(path: Path, lock: int, process: int) -> None:
    if os.getpid() != process:  # A forked process inherits the object, not the folder.
        return
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders that killed processes of this machine have left."""
    for path in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            lock = os.open(path, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            owner = json.loads(os.read(lock, 1 << 12))
            # On a shared disk, the lock may be seen by the owner's machine only.
            if owner["boot"] == boot_id() or owner["host"] == socket.gethostname():
                shutil.rmtree(path.parent, ignore_errors=True)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        finally:
            os.close(lock)
