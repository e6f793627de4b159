"""Rank 0's thread that monitors all ranks: it detects lost and stalled ranks and decides how the run ends."""

from __future__ import annotations

import dataclasses
import os
import selectors
import socket
import threading

from bert_pld.cluster.heartbeat import (
    STARTING,
    AllConnected,
    AwakeClock,
    Cause,
    Connection,
    EndRun,
    Failed,
    Finished,
    Heartbeat,
    Hello,
    Message,
    Progress,
    RankProcess,
    RankZeroLost,
    Timing,
)

EXIT_LOST_RANK = 69
"""Exit code of all ranks after one died or hung: EX_UNAVAILABLE of sysexits.h."""

GRACE_S = 0.5
"""How long the coordinator waits after the first event: the death of one rank makes others fail, in any order."""

RESUME_HINT = "; all ranks stop; run the same command again to resume from the newest checkpoint"

_MAX_RANKS_NAMED = 8


@dataclasses.dataclass
class _Rank:
    """What the coordinator knows about one rank."""

    connection: Connection
    process: RankProcess
    progress: Progress = STARTING
    silent_s: float = 0.0
    stalled_s: float = 0.0
    has_ended: bool = False
    """Whether it has reported its end or is lost, so that a closed connection is no surprise."""


@dataclasses.dataclass(frozen=True)
class _Event:
    """Something that ends the run."""

    cause: Cause
    error: str | None
    exit_code: int = EXIT_LOST_RANK
    rank: _Rank | None = None
    is_hung: bool = False
    """Whether the process may still exist."""
    print_stack: tuple[int, ...] = ()


class Coordinator(threading.Thread):
    """Monitors the ranks until rank 0 has finished or the run has failed; then tells all ranks to end.

    Ranks connect to `listener` and must first send `token`, a secret. The thread blocks only on its sockets, so a hung
    rank, rank 0 included, cannot stall it.
    """

    def __init__(self, listener: socket.socket, token: str, world_size: int, timing: Timing) -> None:
        super().__init__(name="coordinator", daemon=True)
        self.listener, self.token, self.world_size, self.timing = listener, token, world_size, timing
        self.selector = selectors.DefaultSelector()
        self.ranks: list[_Rank] = []
        self.events: list[_Event] = []
        self.is_over = self.all_connected = False
        self._connecting_s = self._heartbeat_due_s = 0.0
        self._decide_in_s = float("inf")
        # The data loader's forked workers must not keep the connections open after this process has died.
        os.register_at_fork(after_in_child=self._close_sockets)

    def run(self) -> None:
        """Monitor until the end of the run."""
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ)
        clock = AwakeClock(self.timing.poll_interval)
        while not self.is_over:
            for key, _ in self.selector.select(self.timing.poll_interval):
                if key.data is None:
                    self._accept()
                else:
                    self._receive(key.data)
            self._advance_time(clock.elapsed())

    def _close_sockets(self) -> None:
        self.listener.close()
        for rank in self.ranks:
            rank.connection.socket.close()

    def _accept(self) -> None:
        try:
            connected, _ = self.listener.accept()
        except OSError:
            return
        self.selector.register(connected, selectors.EVENT_READ, Connection(connected))

    def _receive(self, source: Connection | _Rank) -> None:
        """Read from a rank, or from a connection that has not yet said which rank it is."""
        rank = source if isinstance(source, _Rank) else None
        connection = source.connection if isinstance(source, _Rank) else source
        messages, closed = connection.receive()
        for message in messages:
            if rank is None:
                if not isinstance(message, Hello) or message.token != self.token:
                    closed = True
                    break
                rank = self._add_rank(connection, message.process)
            rank.silent_s = 0.0
            self._handle(rank, message)
        if closed:
            self.selector.unregister(connection.socket)
            connection.socket.close()
            if rank is not None:
                self.ranks.remove(rank)
                if not rank.has_ended:
                    self._add_lost_rank(rank, "exited unexpectedly")

    def _add_rank(self, connection: Connection, process: RankProcess) -> _Rank:
        added = _Rank(connection, process)
        self.selector.modify(connection.socket, selectors.EVENT_READ, added)
        self.ranks.append(added)
        if len(self.ranks) == self.world_size:
            self.all_connected = True
            others = sorted((rank.process for rank in self.ranks if rank.process.rank), key=lambda each: each.rank)
            for rank in self.ranks:
                on_machine = [other.rank for other in others if other.is_on_machine_of(rank.process)]
                rank.connection.send(AllConnected(on_machine[:1] in ([rank.process.rank], [])))
        return added

    def _handle(self, rank: _Rank, message: Message) -> None:
        match message:
            case Progress():
                if message.count != rank.progress.count:
                    rank.stalled_s = 0.0
                rank.progress = message
            case Failed():
                rank.has_ended = True
                cause = Cause(message.cause)
                printed = cause == Cause.ERROR_PRINTED_BY_RANK_0
                error = None if printed else f"error: {rank.process} failed: {message.error}"
                self._add_event(_Event(cause, error, message.exit_code, rank))
            case Finished():
                rank.has_ended = True
                if rank.process.rank == 0:
                    self._end_run(message)
            case RankZeroLost():  # This process was stopped: the other ranks have ended and printed the error.
                self._end_run(EndRun(EXIT_LOST_RANK, None, [], []))

    def _add_event(self, event: _Event) -> None:
        self.events.append(event)
        # A collective can fail long before the heartbeat timeout of the rank that caused it.
        wait_s = self.timing.heartbeat_timeout if event.cause == Cause.COLLECTIVE_FAILURE else 0.0
        self._decide_in_s = min(self._decide_in_s, wait_s + GRACE_S)

    def _add_lost_rank(self, rank: _Rank, how: str, is_hung: bool = False) -> None:
        error = f"error: {rank.process} {how}; its last reported position is {rank.progress.where}{RESUME_HINT}"
        self._add_event(_Event(Cause.LOST_RANK, error, rank=rank, is_hung=is_hung))

    def _advance_time(self, elapsed_s: float) -> None:
        """Send heartbeats, decide if that is due, and check all timeouts."""
        self._heartbeat_due_s -= elapsed_s
        if self._heartbeat_due_s <= 0:
            self._heartbeat_due_s = self.timing.heartbeat_interval
            for rank in self.ranks:
                rank.connection.send(Heartbeat())
        self._find_silent_ranks(elapsed_s)  # Also while a decision waits: a silent rank can be the cause of a failure.
        if self.events:
            self._decide_in_s -= elapsed_s
            if self._decide_in_s <= 0:
                self._decide()
            return
        if not self.all_connected:
            self._connecting_s += elapsed_s
            if self._connecting_s > self.timing.heartbeat_timeout:
                known = {rank.process.rank for rank in self.ranks}
                missing = ", ".join(str(rank) for rank in range(self.world_size) if rank not in known)
                self._add_event(_Event(Cause.LOST_RANK, f"error: no connection from rank {missing}{RESUME_HINT}"))
        for rank in self.ranks:
            rank.stalled_s += elapsed_s
        self._check_for_stall()

    def _find_silent_ranks(self, elapsed_s: float) -> None:
        for rank in self.ranks:
            rank.silent_s += elapsed_s
            if rank.silent_s >= self.timing.heartbeat_timeout and not rank.has_ended:
                rank.has_ended = True
                self._add_lost_rank(rank, f"sent no heartbeat for {self.timing.heartbeat_timeout:g} s", is_hung=True)

    def _check_for_stall(self) -> None:
        active, timeout = [rank for rank in self.ranks if not rank.has_ended], self.timing.stall_timeout
        if any(rank.progress.may_take_long for rank in active):
            for rank in active:
                rank.stalled_s = 0.0
        if not timeout or self.events or not any(rank.stalled_s >= timeout for rank in active):
            return
        # All ranks wait for the slowest one, so the ranks with the smallest count are the cause.
        smallest = min(rank.progress.count for rank in active)
        behind = [rank for rank in active if rank.progress.count == smallest]
        if len(behind) == len(active):
            names, others = f"all {len(active)} ranks are", ""
        else:
            names = ", ".join(str(rank.process) for rank in behind[:_MAX_RANKS_NAMED])
            names += " and more are" if len(behind) > _MAX_RANKS_NAMED else " is" if len(behind) == 1 else " are"
            furthest = max(active, key=lambda rank: rank.progress.count)
            others = f", others at {furthest.progress.where}"
        where = behind[0].progress.where
        error = f"error: no progress for {timeout:g} s: {names} at {where}{others}{RESUME_HINT}"
        stacks = tuple(rank.process.rank for rank in behind[:2])
        self._add_event(_Event(Cause.LOST_RANK, error, print_stack=stacks))

    def _decide(self) -> None:
        """End the run for the first event of the lowest cause."""
        first = min(self.events, key=lambda event: event.cause)
        lost = [event for event in self.events if event.cause == Cause.LOST_RANK and event.rank is not None]
        error = first.error
        if first in lost and len(lost) > 1:
            also = ", ".join(str(event.rank.process) for event in lost[1:_MAX_RANKS_NAMED] if event.rank is not None)
            error = f"{error} (lost at the same time: {also}{', …' if len(lost) > _MAX_RANKS_NAMED else ''})"
        hung = [event.rank.process for event in lost if event.is_hung and event.rank is not None]
        self._end_run(EndRun(first.exit_code, error, hung, list(first.print_stack)))

    def _end_run(self, message: EndRun | Finished) -> None:
        self.is_over = True
        # Rank 0 last: the message ends this process, and a rank that has not received it would report rank 0 as lost.
        for rank in sorted(self.ranks, key=lambda each: each.process.rank == 0):
            rank.connection.send(message)
