"""A rank that dies or hangs ends the run on every host: this rank's part of the ranks' watch over each other.

`start` joins the watch, `mark` says where training is (two assignments, nothing else), and `reporting` makes this
rank's errors known to the others and theirs the end of this one. One thread a rank sends beats and listens to rank 0,
whose judge (`judge.py`) decides; no thread waits for anything but its sockets, so that what is stuck cannot stop it. A
run of one rank has no such thread.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from bert_pld.cluster.heartbeat import AwakeClock, Link, Peer, listen
from bert_pld.cluster.judge import EXIT_LOST_RANK, GRACE_S, WHAT_NOW, Judge

LEAVE_S = 5.0
"""After a verdict: how long a rank may take to end by itself, and a stopped one to wake and do so."""

_BEATS_A_SECOND = 250
"""What rank 0 hears at most, of all ranks together."""
_COLLECTIVES = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "processgroup")
_LEAST_COLLECTIVE_TIMEOUT_S = 1800.0

_member: Member | None = None
_judge: Judge | None = None
_where: tuple[int, str, bool] = (0, "starting", False)
"""(marks so far, the last one, whether it may take any time)."""


def mark(where: str, patient: bool = False) -> None:
    """Say that training has got on, and where it is now; the same marks in the same order on every rank.

    Args:
        where: for people, such as `step 7, micro-batch 0`.
        patient: what begins now may take longer than `training.stall_timeout`.
    """
    global _where
    _where = (_where[0] + 1, where, patient)


def collective_timeout(stall_timeout_s: float) -> timedelta:
    """How long a collective may wait: longer than the watchdog, which knows whom for."""
    return timedelta(seconds=max(_LEAST_COLLECTIVE_TIMEOUT_S, stall_timeout_s + 300))


def start(heartbeat_timeout_s: float, stall_timeout_s: float) -> None:
    """Begin to watch, on all ranks of the default process group together; nothing is done for a single rank.

    Args:
        heartbeat_timeout_s: a rank that gives no sign of life for so long is lost.
        stall_timeout_s: a run hangs when a rank sets no mark for so long; 0: never.

    Raises:
        OSError: rank 0 cannot be reached.
    """
    global _member, _judge
    world_size, rank = dist.get_world_size(), dist.get_rank()
    if world_size == 1:
        return
    beat_s = min(heartbeat_timeout_s / 6, 1 + world_size / _BEATS_A_SECOND)
    tick_s = min(beat_s / 4, 0.5)
    address: list[Any] = [None]
    if rank == 0:
        listener = listen(world_size)
        address = [(listener.getsockname()[1], secrets.token_hex(16), Peer.here(0))]
        _judge = Judge(listener, address[0][1], world_size, heartbeat_timeout_s, stall_timeout_s, tick_s, beat_s)
        _judge.start()
    dist.broadcast_object_list(address, src=0)
    port, token, rank_0 = address[0]
    host = os.environ["MASTER_ADDR"]
    try:
        connection = socket.create_connection((host, port), timeout=heartbeat_timeout_s)
    except OSError as error:
        raise OSError(
            f"rank {rank} cannot reach rank 0 at {host}, port {port} ({error}); is a firewall between?"
        ) from None
    _member = Member(Peer.here(rank), rank_0, Link(connection), token, heartbeat_timeout_s, tick_s, beat_s)
    _member.start()


class Member(threading.Thread):
    """One rank in the watch: sends beats and marks, and obeys a verdict."""

    def __init__(
        self,
        peer: Peer,
        rank_0: Peer,
        link: Link,
        token: str,
        heartbeat_timeout_s: float,
        tick_s: float,
        beat_s: float,
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.peer, self.rank_0, self.link = peer, rank_0, link
        self.heartbeat_timeout_s, self.tick_s, self.beat_s = heartbeat_timeout_s, tick_s, beat_s
        self.speaks = peer.rank <= 1
        """Whether it is this rank that says that rank 0 is lost: the first on each machine, once all have joined."""
        self.reporting = threading.Event()
        """The main thread has noticed that something is wrong; it is given the time to end by itself."""
        self.decided = threading.Event()
        self.code = 0
        self.line: str | None = None
        self.ends_others = False
        self._finished = False
        link.send(token=token, peer=peer.__dict__)
        # A loader's workers must not keep the connection of a dead rank open.
        os.register_at_fork(after_in_child=link.socket.close)

    def run(self) -> None:
        """Until the run's end."""
        clock, silent_s, beat_due_s = AwakeClock(self.tick_s), 0.0, 0.0
        while not self._finished:
            readable, _, _ = select.select([self.link.socket], [], [], self.tick_s)
            messages, closed = self.link.receive() if readable else ([], False)
            passed = clock.passed()
            silent_s = 0.0 if messages else silent_s + passed
            for message in messages:
                self._take(message)
            if self._finished:
                return
            if closed:
                self._judge_lost("ended without a word", to_end=False)
            if silent_s >= self.heartbeat_timeout_s:
                self._judge_lost(f"has given no sign of life for {self.heartbeat_timeout_s:g} s", to_end=True)
            beat_due_s -= passed
            if beat_due_s <= 0:
                beat_due_s = self.beat_s
                marks, where, patient = _where
                self.link.send(marks=marks, where=where, patient=patient)

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("joined"):
            self.speaks = message["speaks"]
        if message.get("finished"):
            self._finished = True
        if "verdict" in message:
            line = message["line"] if self.peer.rank == 0 else None
            end = [Peer(**peer) for peer in message["end"]]
            self._leave(message["verdict"], message["line"], line, end, self.peer.rank in message["dump"])

    def _judge_lost(self, how: str, to_end: bool) -> None:
        self.link.send(rank_0_lost=True)
        line = f"error: {self.rank_0} {how}; rank {self.peer.rank} was at {_where[1]}{WHAT_NOW}"
        end = [self.rank_0] if to_end else []
        self._leave(EXIT_LOST_RANK, line, line if self.speaks else None, end, dump=False)

    def _leave(self, code: int, line: str | None, to_print: str | None, end: list[Peer], dump: bool) -> None:
        """End this process with `code`, whatever its main thread does, after the stopped ones on this machine."""
        beside = [peer for peer in end if peer.is_beside(self.peer) and peer != self.peer]
        self.code, self.line, self.ends_others = code, line, bool(beside)
        said = to_print + "\n" if to_print else ""
        if dump:
            said += f"{self.peer} is in\n{_stack_of_main_thread()}"
        if said:
            _write_to_stderr(said)
        self.decided.set()
        began = time.monotonic()
        for peer in beside:
            peer.signal(signal.SIGCONT)  # it finds the verdict, and ends with the same code
        while (waited := time.monotonic() - began) < LEAVE_S:
            main_may_end = waited < 2 * GRACE_S or (self.reporting.is_set() and not beside)
            if not main_may_end and not any(peer.is_running() for peer in beside):
                break
            time.sleep(0.02)
        for peer in beside:
            peer.signal(signal.SIGKILL)
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(code)

    def say_ended(self, error: BaseException) -> bool:
        """Tell the others how this rank ends, and wait for what is to be done; whether the error is this rank's own."""
        text = " ".join(str(error).split()) or type(error).__name__
        known = isinstance(error, (ValueError, OSError, KeyboardInterrupt))
        collective = not known and _is_of_collectives(text)
        text = text if known else f"{type(error).__name__}: {text}"
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        self.reporting.set()
        marks, where, patient = _where
        self.link.send(marks=marks, where=where, patient=patient)
        prints = known and self.peer.rank == 0
        self.link.send(ended=text[:2000], collective=collective, prints=prints, code=code)
        self.decided.wait(self.heartbeat_timeout_s + 2 * LEAVE_S)
        if self.ends_others:
            self.join()  # until the end of this process
        return not collective

    def finish(self) -> None:
        """This rank has done its work: nobody need watch it any more."""
        self._finished = True
        self.link.send(finished=True)


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """Where a rank's errors are told to the others, and another's loss is what this one ends with.

    Raises:
        SystemExit: another rank was lost or failed, and that has been said.
    """
    global _member
    try:
        yield
    except Exception as error:
        member, _member = _member, None
        if member is None:
            raise
        own = member.say_ended(error)
        if not member.decided.is_set() or (own and member.line is None):
            raise
        if own and not isinstance(error, (ValueError, OSError)):
            traceback.print_exc()
        raise SystemExit(member.code) from None
    except KeyboardInterrupt as error:
        if _member is not None:
            _member.say_ended(error)
        raise


def end_with(error: Exception) -> None:
    """End this process with exit code 1, from any thread and whatever its main thread does, and tell all ranks why."""
    member = _member
    if member is not None:
        member.say_ended(error)
    if member is None or (member.line is None and member.peer.rank == 0):
        _write_to_stderr(f"error: {' '.join(str(error).split())}\n")
    os._exit(1 if member is None or not member.decided.is_set() else member.code)


def finish() -> None:
    """The run is over, on this rank; rank 0 tells the others before it goes."""
    global _member, _judge
    if _member is not None:
        _member.finish()
    if _judge is not None:
        _judge.join(LEAVE_S)
    _member = _judge = None


def _is_of_collectives(text: str) -> bool:
    """Whether an error may be another rank's death as the libraries of collectives tell it."""
    lowered = text.lower()
    return any(word in lowered for word in _COLLECTIVES)


def _stack_of_main_thread() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)) if frame is not None else ""


def _write_to_stderr(text: str) -> None:
    """Past Python's locks, one of which a stuck thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
