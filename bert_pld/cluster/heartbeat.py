"""How ranks tell each other that they live: JSON lines over a socket from each rank to rank 0, and who a rank is.

A socket says at once that its process has ended, on whichever host; that a process is stopped, or its host gone, shows
in beats that do not come. Nothing here ever blocks: a thread that waits for another process could not watch it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

from bert_pld.files import boot_id

_MAX_LINE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Peer:
    """A rank's process, known on its machine beyond its number."""

    rank: int
    host: str
    machine: str
    """This boot of the machine, whatever it is called; empty where the system does not tell."""
    pid: int
    started: int
    """When the process started, in the kernel's ticks since boot: another process of the same number has another."""

    @classmethod
    def here(cls, rank: int) -> Peer:
        """This process."""
        return cls(rank, socket.gethostname(), boot_id(), os.getpid(), _status(os.getpid())[1])

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, process {self.pid})"

    def is_beside(self, other: Peer) -> bool:
        """Whether both run on one machine."""
        return bool(self.machine) and (self.host, self.machine) == (other.host, other.machine)

    def is_running(self) -> bool:
        """Whether this very process is there, on the machine that asks; a zombie is not."""
        state, started = _status(self.pid)
        return bool(started) and started == self.started and state not in "ZX"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this very process, if it is there."""
        if self.is_running():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)


def _status(pid: int) -> tuple[str, int]:
    """A process's state and start (ticks since boot), as the kernel tells; ("", 0) where it does not."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return after_name[0], int(after_name[19])
    except (OSError, IndexError, ValueError):
        return "", 0


class Link:
    """One end of a connection. Sending drops what the other end does not take; `receive` takes what is there."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._received = b""
        self._sending = threading.Lock()

    def send(self, **message: Any) -> None:
        """Send a message, from any thread."""
        with self._sending, contextlib.suppress(OSError):
            self.socket.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """The messages that have come, and whether the other end has closed, or says what is no message."""
        closed = False
        while not closed:
            try:
                data = self.socket.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            closed = not data or len(self._received) > _MAX_LINE_BYTES
            self._received += data
        *lines, self._received = self._received.split(b"\n")
        try:
            return [dict(json.loads(line)) for line in lines], closed
        except (ValueError, TypeError):
            return [], True


class AwakeClock:
    """Time that passes only while its thread runs: who was stopped or starved has not waited for anybody."""

    def __init__(self, tick_s: float) -> None:
        self.tick_s = tick_s
        self._last = time.monotonic()

    def passed(self) -> float:
        """Seconds since the last call, two ticks at most."""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        return min(elapsed, 2 * self.tick_s)


def listen(backlog: int) -> socket.socket:
    """A socket that listens on a free port of every interface."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=backlog)
