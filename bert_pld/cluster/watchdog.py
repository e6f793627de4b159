"""The watchdog: if one rank dies, hangs or fails, the run ends on every host, with one line that names the cause.

Each rank has a thread that sends heartbeats to the coordinator on rank 0 (`coordinator.py`) and ends the process when
the coordinator decides so. Threads block only on sockets, so a hung rank cannot stall them. A run of one rank has no
such thread.
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
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from bert_pld.cluster.coordinator import EXIT_LOST_RANK, GRACE_S, RESUME_HINT, Coordinator
from bert_pld.cluster.heartbeat import (
    STARTING,
    AllConnected,
    AwakeClock,
    Cause,
    Connection,
    EndRun,
    Failed,
    Finished,
    Hello,
    Message,
    Progress,
    RankProcess,
    RankZeroLost,
    Timing,
    listen,
)

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""

END_S = 5.0
"""After the decision to end the run: how long a rank may take to end by itself before it is killed."""

_MIN_COLLECTIVE_TIMEOUT_S = 1800.0
_MAX_ERROR_CHARACTERS = 2000
_COLLECTIVE_WORDS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "processgroup")


def collective_timeout(stall_timeout_s: float) -> timedelta:
    """Return how long a collective may wait: longer than the watchdog, which can name the rank that is missing."""
    return timedelta(seconds=max(_MIN_COLLECTIVE_TIMEOUT_S, stall_timeout_s + 300))


class Watchdog:
    """Monitors the run on this rank. For a single rank, and before `start`, it does nothing."""

    def __init__(self) -> None:
        self._progress = STARTING
        self._thread: _RankThread | None = None
        self._coordinator: Coordinator | None = None

    def start(self, heartbeat_timeout_s: float, stall_timeout_s: float) -> None:
        """Start monitoring with the timeouts of `Timing`; all ranks of the default process group call it together.

        An OSError is raised if rank 0 cannot be reached.
        """
        world_size, rank = dist.get_world_size(), dist.get_rank()
        if world_size == 1:
            return
        timing = Timing.of_run(world_size, heartbeat_timeout_s, stall_timeout_s)
        from_rank_0: list[Any] = [None]
        if rank == 0:
            listener, token = listen(world_size), secrets.token_hex(16)
            self._coordinator = Coordinator(listener, token, world_size, timing)
            self._coordinator.start()
            from_rank_0 = [(listener.getsockname()[1], token, RankProcess.current(0))]
        dist.broadcast_object_list(from_rank_0, src=0)
        port, token, rank_0 = from_rank_0[0]
        host = os.environ["MASTER_ADDR"]
        try:
            connected = socket.create_connection((host, port), timeout=heartbeat_timeout_s)
        except OSError as error:
            raise OSError(
                f"cannot connect to rank 0 at {host}, port {port} ({error}); check that no firewall blocks"
                " connections between the nodes"
            ) from None
        process, connection = RankProcess.current(rank), Connection(connected)
        self._thread = _RankThread(process, rank_0, connection, timing, lambda: self._progress)
        connection.send(Hello(token, process))
        self._thread.start()

    def progress(self, where: str, may_take_long: bool = False) -> None:
        """Record that training has reached a new position; every rank must pass the same positions in the same order.

        It is one assignment, which the thread reads at its next heartbeat. `where` names the position in error
        messages. The work that begins now may take longer than `training.stall_timeout` if `may_take_long` is set.
        """
        self._progress = Progress(self._progress.count + 1, where, may_take_long)

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Report an exception in this block to the other ranks, and end with the run's error and exit code.

        If another rank was lost or failed, the error is printed already, so a SystemExit replaces the exception.
        """
        try:
            yield
        except Exception as error:
            thread, self._thread = self._thread, None
            if thread is None:
                raise
            is_own = thread.report(error)
            if thread.decision is None or (is_own and thread.decision.error is None):
                raise
            if is_own and not isinstance(error, (ValueError, OSError)):
                traceback.print_exc()
            raise SystemExit(thread.decision.exit_code) from None
        except KeyboardInterrupt as error:
            if self._thread is not None:
                self._thread.report(error)
            raise

    def end_with(self, error: Exception) -> None:
        """Report an error and end this process at once, from any thread, even if the main thread is blocked."""
        thread = self._thread
        if thread is not None:
            thread.report(error)
        decision = None if thread is None else thread.decision
        if thread is None or (thread.process.rank == 0 and (decision is None or decision.error is None)):
            _write_to_stderr(f"error: {' '.join(str(error).split())}\n")
        os._exit(1 if decision is None else decision.exit_code)

    def stop(self) -> None:
        """Stop monitoring after this rank has done all its work; rank 0 tells the others before it ends."""
        if self._thread is not None:
            self._thread.finish()
        if self._coordinator is not None:
            self._coordinator.join(END_S)
        self._thread = self._coordinator = None


class _RankThread(threading.Thread):
    """Sends this rank's heartbeats, and ends the process when the coordinator decides so or is lost itself."""

    def __init__(
        self,
        process: RankProcess,
        rank_0: RankProcess,
        connection: Connection,
        timing: Timing,
        progress: Callable[[], Progress],
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.process, self.rank_0, self.connection, self.timing = process, rank_0, connection, timing
        self.progress = progress
        self.reports_loss_of_rank_0 = process.rank <= 1
        """Whether this rank prints the error if rank 0 is lost: the first rank of each machine, once all connected."""
        self.main_is_ending = threading.Event()
        """The main thread has raised an exception, so it is given time to end by itself."""
        self.decided = threading.Event()
        self.decision: EndRun | None = None
        self.must_end_hung_processes = False
        self._finished = False
        # The data loader's forked workers must not keep the connection open after this process has died.
        os.register_at_fork(after_in_child=connection.socket.close)

    def run(self) -> None:
        """Exchange heartbeats until the end of the run."""
        clock, silent_s, heartbeat_due_s = AwakeClock(self.timing.poll_interval), 0.0, 0.0
        while not self._finished:
            readable, _, _ = select.select([self.connection.socket], [], [], self.timing.poll_interval)
            messages, closed = self.connection.receive() if readable else ([], False)
            elapsed_s = clock.elapsed()
            silent_s = 0.0 if messages else silent_s + elapsed_s
            for message in messages:
                self._handle(message)
            if self._finished:
                return
            if closed:
                self._end_without_rank_0("exited unexpectedly", hung=[])
            if silent_s >= self.timing.heartbeat_timeout:
                how = f"sent no heartbeat for {self.timing.heartbeat_timeout:g} s"
                self._end_without_rank_0(how, hung=[self.rank_0])
            heartbeat_due_s -= elapsed_s
            if heartbeat_due_s <= 0:
                heartbeat_due_s = self.timing.heartbeat_interval
                self.connection.send(self.progress())

    def _handle(self, message: Message) -> None:
        match message:
            case AllConnected():
                self.reports_loss_of_rank_0 = message.reports_loss_of_rank_0
            case Finished():
                self._finished = True
            case EndRun():
                self._end_process(message, prints=self.process.rank == 0)

    def _end_without_rank_0(self, how: str, hung: list[RankProcess]) -> None:
        self.connection.send(RankZeroLost())
        where = self.progress().where
        error = f"error: {self.rank_0} {how}; the position of rank {self.process.rank} is {where}{RESUME_HINT}"
        self._end_process(EndRun(EXIT_LOST_RANK, error, hung, []), prints=self.reports_loss_of_rank_0)

    def _end_process(self, decision: EndRun, prints: bool) -> None:
        """End this process, whatever its main thread does, after the hung processes on this machine have ended."""
        hung = [each for each in decision.hung if each.is_on_machine_of(self.process) and each != self.process]
        self.must_end_hung_processes = bool(hung)
        text = f"{decision.error}\n" if decision.error is not None and prints else ""
        if self.process.rank in decision.print_stack:
            text += f"stack of {self.process}:\n{_stack_of_main_thread()}"
        if text:
            _write_to_stderr(text)
        self.decision = decision
        self.decided.set()
        began = time.monotonic()
        for process in hung:
            process.send_signal(signal.SIGCONT)  # It then reads the decision, and ends with the same exit code.
        while (waited_s := time.monotonic() - began) < END_S:
            main_may_end = waited_s < 2 * GRACE_S or (self.main_is_ending.is_set() and not hung)
            if not main_may_end and not any(process.is_running() for process in hung):
                break
            time.sleep(0.02)
        for process in hung:
            process.send_signal(signal.SIGKILL)
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(decision.exit_code)

    def report(self, error: BaseException) -> bool:
        """Report the exception that ends this rank and wait for the decision; return whether it is this rank's own.

        A failed collective is not: another rank is its cause.
        """
        text = " ".join(str(error).split()) or type(error).__name__
        is_for_users = isinstance(error, (ValueError, OSError, KeyboardInterrupt))
        if is_for_users:
            cause = Cause.ERROR_PRINTED_BY_RANK_0 if self.process.rank == 0 else Cause.ERROR
        else:
            text = f"{type(error).__name__}: {text}"
            cause = Cause.COLLECTIVE_FAILURE if _is_collective_failure(error) else Cause.ERROR
        exit_code = EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
        if cause == Cause.COLLECTIVE_FAILURE:  # If no rank is its cause, the network between them is.
            exit_code = EXIT_LOST_RANK
        self.main_is_ending.set()
        self.connection.send(self.progress())
        self.connection.send(Failed(text[:_MAX_ERROR_CHARACTERS], cause, exit_code))
        self.decided.wait(self.timing.heartbeat_timeout + 2 * END_S)
        if self.must_end_hung_processes:
            self.join()  # The thread ends this process.
        return cause != Cause.COLLECTIVE_FAILURE

    def finish(self) -> None:
        """Tell the coordinator that this rank has done all its work."""
        self._finished = True
        self.connection.send(Finished())


def _is_collective_failure(error: BaseException) -> bool:
    """Return whether a collective has raised this error, so that another rank is most likely its cause.

    NCCL raises a `DistError`. Gloo raises a plain RuntimeError (torch 2.11 to 2.14) when another rank closes its
    connection, as unrelated parts of torch do: only the words of the message tell them apart.
    """
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _COLLECTIVE_WORDS)


def _stack_of_main_thread() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)) if frame is not None else ""


def _write_to_stderr(text: str) -> None:
    """Write without `sys.stderr`, whose lock a hung thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
