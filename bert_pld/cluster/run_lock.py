"""One run a folder: a lock that a second job is refused by, and that a dead job does not keep.

The kernel's lock on `run.lock` says whether a process of this machine, or of any machine where the file system passes
locks on (NFS, GPFS, Lustre mounted with `flock`), holds it; it ends with its process. Some file systems keep locks to
one node, or have none. So the holder also counts up a beat in the file, and where the last holder was another machine
that did not sign off, the newcomer first watches the beat. Clocks and host names of machines are never compared.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from bert_pld.files import RUN_LOCK, boot_id

BEAT_S = 5.0
_SILENT_BEATS = 4
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunLockedError(ValueError):
    """Another run has the folder."""


class RunLock:
    """Holds a run's folder from `acquire` to `release`, or to the end of the process.

    Args:
        run_dir: made if it is not there.
        beat_s: how often the holder gives a sign, seconds; a newcomer from another machine watches four of them.
    """

    def __init__(self, run_dir: Path, beat_s: float = BEAT_S) -> None:
        self.path, self.beat_s = run_dir / RUN_LOCK, beat_s
        self._file = -1
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None
        self._own: dict[str, Any] = {
            "token": secrets.token_hex(8),
            "machine": boot_id() or socket.gethostname(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "beat": 0,
        }

    def acquire(self) -> None:
        """Take the folder.

        Raises:
            RunLockedError: another run is at work in it; names its host, process and job.
            OSError: the folder cannot be written to.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        kernel_knows = True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                self._refuse()
            if error.errno not in _NO_LOCKS_HERE:
                raise
            kernel_knows = False
        last = self._read()
        if last and not (kernel_knows and last.get("machine") == self._own["machine"]):
            self._watch(last)
            self._write()
            time.sleep(2 * self.beat_s)  # of two newcomers at once, the one that wrote last stays
            if self._read().get("token") != self._own["token"]:
                self._refuse()
        self._write()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def release(self) -> None:
        """Sign off: the next run need not watch."""
        if self._file < 0:
            return
        self._ended.set()
        if self._beating is not None:
            self._beating.join()
        if self._read().get("token") == self._own["token"]:
            os.ftruncate(self._file, 0)
        os.close(self._file)
        self._file = -1

    def _watch(self, last: dict[str, Any]) -> None:
        """Wait for a sign of the last holder."""
        deadline = time.monotonic() + _SILENT_BEATS * self.beat_s
        while time.monotonic() < deadline:
            time.sleep(self.beat_s / 4)
            now = self._read()
            if not now:
                return
            if now != last:
                self._refuse()

    def _beat(self) -> None:
        while not self._ended.wait(self.beat_s):
            if self._read().get("token") != self._own["token"]:
                return
            self._own["beat"] += 1
            self._write()

    def _refuse(self) -> None:
        holder = self._read()
        os.close(self._file)
        self._file = -1
        job = f", job {holder['job']}" if holder.get("job") else ""
        raise RunLockedError(
            f"--output_dir {self.path.parent}: another run is at work in it (host {holder.get('host', 'unknown')},"
            f" process {holder.get('pid', 'unknown')}{job}); wait for its end, or use another folder"
        )

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(os.pread(self._file, 4096, 0) or b"{}")
        except (OSError, ValueError):
            return {"unreadable": True}
        return content if isinstance(content, dict) else {}

    def _write(self) -> None:
        content = json.dumps(self._own).encode()
        try:
            os.pwrite(self._file, content + b" " * (512 - len(content)), 0)
        except OSError:  # a full disk: the kernel's lock still holds
            return
