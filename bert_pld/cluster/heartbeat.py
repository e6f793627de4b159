"""What ranks exchange to monitor each other: processes, messages, and the sockets to the coordinator on rank 0.

A message is one line of JSON. A closed socket shows at once that its process has ended, on any host. Missing heartbeats
show that a process is stopped or that its host is lost. Nothing here blocks: a thread that waits for another process
could not monitor it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import get_args

from bert_pld.files import boot_id

_MAX_LINE_BYTES = 1 << 20
_MAX_HEARTBEATS_PER_S = 250
"""Largest number of heartbeats that rank 0 receives from all ranks together."""


@dataclasses.dataclass(frozen=True)
class RankProcess:
    """The process of a rank. The start time tells it from a later process with the same id."""

    rank: int
    host: str
    boot: str
    """Id of the machine's current boot, which does not depend on its host name; empty if the system has none."""
    pid: int
    start_ticks: int
    """Start time in the kernel's clock ticks since boot."""

    @classmethod
    def current(cls, rank: int) -> RankProcess:
        """Describe this process."""
        return cls(rank, socket.gethostname(), boot_id(), os.getpid(), _state_and_start(os.getpid())[1])

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, process {self.pid})"

    def is_on_machine_of(self, other: RankProcess) -> bool:
        """Return whether both processes run on the same machine."""
        return bool(self.boot) and (self.host, self.boot) == (other.host, other.boot)

    def is_running(self) -> bool:
        """Return whether this process still runs, or is stopped; only valid on its own machine."""
        state, start_ticks = _state_and_start(self.pid)
        return bool(start_ticks) and start_ticks == self.start_ticks and state not in "ZX"

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to this process, never to a later one with the same id."""
        if self.is_running():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)


def _state_and_start(pid: int) -> tuple[str, int]:
    """Return a process's state letter and start time from /proc; ("", 0) if the process or /proc does not exist."""
    try:
        # The name, in parentheses, may itself contain spaces and parentheses.
        fields_after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields_after_name[0], int(fields_after_name[19])
    except (OSError, IndexError, ValueError):
        return "", 0


class Cause(enum.IntEnum):
    """Why a run ends. One failure makes others fail: of several causes at the same time, the lowest is reported."""

    LOST_RANK = 0
    ERROR_PRINTED_BY_RANK_0 = 1
    """An error for users, such as a damaged file. All ranks often raise it alike, so rank 0's own line is enough."""
    ERROR = 2
    """An error of another rank, or a bug on rank 0."""
    COLLECTIVE_FAILURE = 3
    """A failed collective: most likely because another rank has ended."""


# Messages from a rank to the coordinator.


@dataclasses.dataclass(frozen=True)
class Hello:
    """The first message of a rank."""

    token: str
    process: RankProcess


@dataclasses.dataclass(frozen=True)
class Progress:
    """A rank's heartbeat: how far its main thread is."""

    count: int
    """Number of positions that it has passed."""
    where: str
    may_take_long: bool
    """Whether the work at this position may take longer than the stall timeout."""


STARTING = Progress(0, "starting", False)
"""The progress of a rank that has reported none."""


@dataclasses.dataclass(frozen=True)
class Failed:
    """An exception is about to end a rank."""

    error: str
    cause: int
    exit_code: int


@dataclasses.dataclass(frozen=True)
class RankZeroLost:
    """The sender has decided that rank 0 is lost. Rank 0 reads this if it was only stopped."""


# Messages from the coordinator to a rank.


@dataclasses.dataclass(frozen=True)
class Heartbeat:
    """Rank 0 is alive."""


@dataclasses.dataclass(frozen=True)
class AllConnected:
    """The coordinator monitors all ranks from now on."""

    reports_loss_of_rank_0: bool
    """Whether the receiver prints the error if rank 0 is lost; one rank on each machine does."""


@dataclasses.dataclass(frozen=True)
class EndRun:
    """The run has failed: the receiver has to end."""

    exit_code: int
    error: str | None
    """The line that rank 0 prints; None if it was printed already."""
    hung: list[RankProcess]
    """Processes that have to be woken or killed by a rank on their machine, since they do not end by themselves."""
    print_stack: list[int]
    """Ranks that print the stack of their main thread."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """Sent in both directions: the sender has done all its work. Rank 0's message ends the monitoring of all ranks."""


Message = Hello | Progress | Failed | RankZeroLost | Heartbeat | AllConnected | EndRun | Finished
_TYPES: dict[str, type] = {each.__name__: each for each in (RankProcess, *get_args(Message))}


def encode(message: Message) -> bytes:
    """Return a message as one line of JSON."""
    return json.dumps(message, default=lambda value: {"type": type(value).__name__, **vars(value)}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Return the message in one line; raise a ValueError if the line is not a message."""
    try:
        message = json.loads(line, object_hook=lambda fields: _TYPES[fields.pop("type")](**fields))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a message: {line[:80]!r}") from error
    if not isinstance(message, Message):
        raise ValueError(f"not a message: {line[:80]!r}")
    return message


class Connection:
    """One end of a socket, never blocking: what the other end does not read in time is dropped."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected
        self._received = b""
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Send a message; may be called from any thread."""
        with self._sending, contextlib.suppress(OSError):
            self.socket.send(encode(message))

    def receive(self) -> tuple[list[Message], bool]:
        """Return the messages that have arrived, and whether the connection is closed or has sent something else."""
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
            return [decode(line) for line in lines], closed
        except ValueError:
            return [], True


@dataclasses.dataclass(frozen=True)
class Timing:
    """Timeouts and intervals, in seconds."""

    heartbeat_timeout: float
    """A rank that sends no heartbeat for this long is lost."""
    stall_timeout: float
    """The run has stalled if a rank makes no progress for this long; 0: never."""
    heartbeat_interval: float
    poll_interval: float
    """How often timeouts are checked."""

    @classmethod
    def of_run(cls, world_size: int, heartbeat_timeout: float, stall_timeout: float) -> Timing:
        """Choose the intervals for a number of ranks."""
        interval = min(heartbeat_timeout / 6, 1 + world_size / _MAX_HEARTBEATS_PER_S)
        return cls(heartbeat_timeout, stall_timeout, interval, min(interval / 4, 0.5))


class AwakeClock:
    """A clock that advances only while its thread runs.

    A process that was stopped or starved has not waited for the others in that time, so it must not call them silent.
    """

    def __init__(self, poll_interval_s: float) -> None:
        self.poll_interval_s = poll_interval_s
        self._last = time.monotonic()

    def elapsed(self) -> float:
        """Return the seconds since the last call, at most two poll intervals."""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        return min(elapsed, 2 * self.poll_interval_s)


def listen(backlog: int) -> socket.socket:
    """Open a socket that listens on a free port of every network interface."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=backlog)
