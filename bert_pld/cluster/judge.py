"""Rank 0's watch over all ranks: who has ended, who is silent, who does not get on, and what is done about it."""

from __future__ import annotations

import dataclasses
import os
import selectors
import socket
import threading
from typing import Any

from bert_pld.cluster.heartbeat import AwakeClock, Link, Peer

EXIT_LOST_RANK = 69
"""sysexits' EX_UNAVAILABLE: a rank died or hangs; what the others end with."""

GRACE_S = 0.5
"""One death makes others fail: so long is waited for the first cause to show."""

_NAMED_AT_MOST = 8
WHAT_NOW = "; all ranks end; the same command goes on from the newest checkpoint"

# Of events that come together the first of the lowest kind is the cause.
LOST, ERROR_OF_RANK_0, ERROR, COLLECTIVE = range(4)


@dataclasses.dataclass
class _Watched:
    """What is known of one rank."""

    link: Link
    peer: Peer | None = None
    marks: int = 0
    where: str = "starting"
    patient: bool = False
    silent_s: float = 0.0
    unmoved_s: float = 0.0
    told: bool = False
    """Whether it has said how it ended."""


@dataclasses.dataclass
class _Event:
    kind: int
    line: str | None
    code: int
    watched: _Watched | None = None
    to_end: bool = False
    dump: tuple[int, ...] = ()


class Judge(threading.Thread):
    """Watches until rank 0 has finished, or until there is a verdict, which it sends to all.

    Args:
        listener: where the ranks connect.
        token: what they show.
        world_size: how many.
        heartbeat_timeout_s: a rank is lost after so much silence.
        stall_timeout_s: a run hangs when a rank has set no mark for so long; 0: never.
        tick_s: how often clocks are looked at; `beat_s`: how often beats are sent.
    """

    def __init__(
        self,
        listener: socket.socket,
        token: str,
        world_size: int,
        heartbeat_timeout_s: float,
        stall_timeout_s: float,
        tick_s: float,
        beat_s: float,
    ) -> None:
        super().__init__(name="judge", daemon=True)
        self.listener, self.token, self.world_size = listener, token, world_size
        self.heartbeat_timeout_s, self.stall_timeout_s = heartbeat_timeout_s, stall_timeout_s
        self.tick_s, self.beat_s = tick_s, beat_s
        self.selector = selectors.DefaultSelector()
        self.watched: list[_Watched] = []
        self.events: list[_Event] = []
        self.over = self.all_joined = False
        self._joining_s = self._beat_due_s = 0.0
        self._decide_in_s = float("inf")
        # A loader's workers must not keep connections open when this process is dead.
        os.register_at_fork(after_in_child=self._close)

    def run(self) -> None:
        """Until the end of the run."""
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ)
        clock = AwakeClock(self.tick_s)
        while not self.over:
            for key, _ in self.selector.select(self.tick_s):
                if key.data is None:
                    self._accept()
                else:
                    self._hear(key.data)
            self._pass_time(clock.passed())

    def _close(self) -> None:
        self.listener.close()
        for watched in self.watched:
            watched.link.socket.close()

    def _accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        watched = _Watched(Link(connection))
        self.selector.register(connection, selectors.EVENT_READ, watched)

    def _hear(self, watched: _Watched) -> None:
        messages, closed = watched.link.receive()
        for message in messages:
            if watched.peer is None:
                if message.get("token") != self.token:
                    closed = True
                    break
                self._join(watched, Peer(**message["peer"]))
            watched.silent_s = 0.0
            self._take(watched, message)
        if closed:
            self.selector.unregister(watched.link.socket)
            watched.link.socket.close()
            if watched.peer is not None:
                self.watched.remove(watched)
                if not watched.told:
                    ended = f"{watched.peer} ended without a word; it was last heard at {watched.where}{WHAT_NOW}"
                    self._note(_Event(LOST, f"error: {ended}", EXIT_LOST_RANK, watched))

    def _join(self, watched: _Watched, peer: Peer) -> None:
        watched.peer = peer
        self.watched.append(watched)
        if len(self.watched) < self.world_size:
            return
        self.all_joined = True
        peers = {w.peer.rank: w.peer for w in self.watched if w.peer is not None}
        for each in self.watched:
            assert each.peer is not None
            beside = [rank for rank in sorted(peers) if rank and peers[rank].is_beside(each.peer)]
            speaks = beside[:1] in ([each.peer.rank], [])
            each.link.send(joined=True, speaks=speaks)

    def _take(self, watched: _Watched, message: dict[str, Any]) -> None:
        assert watched.peer is not None
        if "marks" in message:
            if message["marks"] != watched.marks:
                watched.unmoved_s = 0.0
            watched.marks, watched.where, watched.patient = message["marks"], message["where"], message["patient"]
        if "ended" in message:
            watched.told = True
            line: str | None = f"error: {watched.peer} ended: {message['ended']}"
            kind = COLLECTIVE if message["collective"] else ERROR
            if message["prints"]:
                line, kind = None, ERROR_OF_RANK_0
            self._note(_Event(kind, line, message["code"], watched))
        if message.get("finished"):
            watched.told = True
            if watched.peer.rank == 0:
                self._end(finished=True)
        if message.get("rank_0_lost"):  # while this process was stopped: the others have said what there is to say
            self._end(verdict=EXIT_LOST_RANK, line=None, end=[], dump=[])

    def _note(self, event: _Event) -> None:
        self.events.append(event)
        wait = self.heartbeat_timeout_s + GRACE_S if event.kind == COLLECTIVE else GRACE_S
        self._decide_in_s = min(self._decide_in_s, wait)

    def _pass_time(self, elapsed: float) -> None:
        self._beat_due_s -= elapsed
        if self._beat_due_s <= 0:
            self._beat_due_s = self.beat_s
            for watched in self.watched:
                watched.link.send(beat=True)
        if self.events:
            self._decide_in_s -= elapsed
            if self._decide_in_s <= 0:
                self._decide()
            return
        if not self.all_joined:
            self._joining_s += elapsed
            if self._joining_s > self.heartbeat_timeout_s:
                known = {w.peer.rank for w in self.watched if w.peer is not None}
                missing = ", ".join(str(rank) for rank in range(self.world_size) if rank not in known)
                self._note(_Event(LOST, f"error: no connection from rank {missing}{WHAT_NOW}", EXIT_LOST_RANK))
        for watched in self.watched:
            watched.silent_s += elapsed
            watched.unmoved_s += elapsed
            if watched.silent_s >= self.heartbeat_timeout_s and not watched.told:
                silent = f"{watched.peer} has given no sign of life for {self.heartbeat_timeout_s:g} s"
                line = f"error: {silent}; it was last heard at {watched.where}{WHAT_NOW}"
                self._note(_Event(LOST, line, EXIT_LOST_RANK, watched, to_end=True))
        self._look_for_a_stall()

    def _look_for_a_stall(self) -> None:
        ranks = [w for w in self.watched if not w.told]
        if any(w.patient for w in ranks):
            for watched in ranks:
                watched.unmoved_s = 0.0
        if not self.stall_timeout_s or self.events:
            return
        if not any(w.unmoved_s >= self.stall_timeout_s for w in ranks):
            return
        last = min(w.marks for w in ranks)
        behind = [w for w in ranks if w.marks == last]
        if len(behind) == len(ranks):
            named, others = f"all {len(ranks)} ranks are", ""
        else:
            named = ", ".join(str(w.peer) for w in behind[:_NAMED_AT_MOST])
            named += " and more are" if len(behind) > _NAMED_AT_MOST else " is" if len(behind) == 1 else " are"
            furthest = max(ranks, key=lambda w: w.marks)
            others = f", others at {furthest.where}"
        line = f"error: no progress for {self.stall_timeout_s:g} s: {named} at {behind[0].where}{others}{WHAT_NOW}"
        dump = tuple(w.peer.rank for w in behind[:2] if w.peer is not None)
        self._note(_Event(LOST, line, EXIT_LOST_RANK, dump=dump))

    def _decide(self) -> None:
        cause = min(self.events, key=lambda event: event.kind)
        lost = [event for event in self.events if event.kind == LOST and event.watched is not None]
        line = cause.line
        if cause.watched is not None and cause.kind == LOST and len(lost) > 1:
            also = ", ".join(str(event.watched.peer) for event in lost[1:_NAMED_AT_MOST] if event.watched is not None)
            line = f"{line} (lost at the same time: {also}{', …' if len(lost) > _NAMED_AT_MOST else ''})"
        to_end = [e.watched.peer for e in lost if e.to_end and e.watched is not None and e.watched.peer is not None]
        self._end(
            verdict=cause.code, line=line, end=[dataclasses.asdict(peer) for peer in to_end], dump=list(cause.dump)
        )

    def _end(self, **message: Any) -> None:
        self.over = True
        # Rank 0 last: told, it ends this process, and whoever has heard nothing by then takes it for lost.
        for watched in sorted(self.watched, key=lambda each: each.peer is not None and each.peer.rank == 0):
            watched.link.send(**message)
