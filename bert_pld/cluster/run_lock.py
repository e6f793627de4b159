"""A lock on a run's folder: a second run on the same folder is refused, and a dead run does not keep the lock.

The kernel's lock on `run.lock` ends with the process that holds it. It is seen by other machines if the file system
supports that (NFS, GPFS, Lustre mounted with `flock`), but some file systems keep locks to one machine or have none.
Therefore the holder also increments a heartbeat counter in the file. If a run on another machine finds a holder in the
file, it first observes whether the counter changes. The clocks of different machines are never compared.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from bert_pld.files import RUN_LOCK, boot_id

HEARTBEAT_S = 5.0
_SILENT_HEARTBEATS = 4


class RunLockedError(ValueError):
    """Another run uses the folder."""


class RunLock:
    """Holds the lock of a run's folder from `acquire` to `release`, or to the end of the process.

    The holder sends a heartbeat every `heartbeat_s` seconds; a run on another machine observes four of them.
    """

    def __init__(self, run_dir: Path, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.path, self.heartbeat_s = run_dir / RUN_LOCK, heartbeat_s
        self._file = -1
        self._released = threading.Event()
        self._heartbeat: threading.Thread | None = None
        self._own: dict[str, Any] = {
            "token": secrets.token_hex(8),
            "machine": boot_id() or socket.gethostname(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "beat": 0,
        }

    def acquire(self) -> None:
        """Acquire the lock, or raise a RunLockedError that names host, process and job of the run that holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        has_kernel_lock = True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                self._refuse()
            # Without locks, file systems answer with ENOLCK, ENOSYS, EOPNOTSUPP, EINVAL, EIO, …
            has_kernel_lock = False
        last = self._read()
        # The kernel's lock proves that a holder on this machine is dead, but not one on another machine.
        if not has_kernel_lock or (last and last.get("machine") != self._own["machine"]):
            if last:
                self._observe(last)
            self._write()
            time.sleep(2 * self.heartbeat_s)  # If two runs do this at the same time, the last one to write stays.
            if self._read().get("token") != self._own["token"]:
                self._refuse()
        self._write()
        self._heartbeat = threading.Thread(target=self._send_heartbeats, daemon=True)
        self._heartbeat.start()

    def release(self) -> None:
        """Release the lock and empty the file, so that the next run need not observe it."""
        if self._file < 0:
            return
        self._released.set()
        if self._heartbeat is not None:
            self._heartbeat.join()
        if self._read().get("token") == self._own["token"]:
            os.ftruncate(self._file, 0)
        os.close(self._file)
        self._file = -1

    def _observe(self, last: dict[str, Any]) -> None:
        """Return after the last holder has released the lock or sent no heartbeat for a while; refuse if it does."""
        deadline = time.monotonic() + _SILENT_HEARTBEATS * self.heartbeat_s
        while time.monotonic() < deadline:
            time.sleep(self.heartbeat_s / 4)
            current = self._read()
            if not current:
                return
            if current != last:
                self._refuse()

    def _send_heartbeats(self) -> None:
        while not self._released.wait(self.heartbeat_s):
            current = self._read()
            if "unreadable" in current:  # An error of the file system may pass.
                continue
            if current and current.get("token") != self._own["token"]:
                print(
                    f"warning: {self.path.parent}: another run (host {current.get('host', 'unknown')}, process"
                    f" {current.get('pid', 'unknown')}) took the folder while this one was silent; stop one of them",
                    file=sys.stderr,
                    flush=True,
                )
                return
            self._own["beat"] += 1
            self._write()

    def _refuse(self) -> None:
        holder = self._read()
        os.close(self._file)
        self._file = -1
        job = f", job {holder['job']}" if holder.get("job") else ""
        raise RunLockedError(
            f"--output_dir {self.path.parent}: in use by another run (host {holder.get('host', 'unknown')},"
            f" process {holder.get('pid', 'unknown')}{job}); wait until it ends, or use another folder"
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
            # Padded, so that a shorter text overwrites all of a longer one.
            os.pwrite(self._file, content + b" " * (512 - len(content)), 0)
        except OSError:  # The disk is full; the kernel's lock still holds.
            return
