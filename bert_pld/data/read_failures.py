"""Clear errors when data can no longer be read: a loader process died, or a shard was cut while it was mapped.

Reading beyond the end of a mapped file raises the signal SIGBUS, not an exception. The instruction that faults is
repeated as long as the signal's handler returns, so its thread never reaches the next line. Another thread can act: the
interpreter's own handler writes the signal's number into a pipe, and NumPy reads mapped files without holding the
interpreter's lock.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator

from bert_pld.data.rows import ShardedRows

UNKNOWN_BUS_ERROR = (
    "bus error: a file was cut short, or its file system failed, while it was read; `python -m data_prep verify` checks"
    " shards"
)
_PARENT_CHECK_SECONDS = 2.0


@contextlib.contextmanager
def naming_damaged_shards(splits: Iterable[ShardedRows | None], end: Callable[[ValueError], None]) -> Iterator[None]:
    """While training reads these splits, name the shard that was cut or the worker that died; in the main thread.

    If this process itself cannot read, `end` reports the error and ends the process. It must not return, because the
    thread that faulted cannot continue. If a worker died, a ChildProcessError names the damaged shard, if there is one.
    """
    watched = tuple(rows for rows in splits if rows is not None)
    _end_on_bus_error(watched, end)
    try:
        with naming_dead_workers():
            yield
    except ChildProcessError as error:
        raise ChildProcessError(_damaged_shard(watched) or error) from None


@contextlib.contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Turn torch's error for a dead worker, which may be raised anywhere, into a ChildProcessError of one line."""
    try:
        yield
    except RuntimeError as error:
        pattern = r"DataLoader worker \((.*?)\) (is killed by signal: \w+|exited unexpectedly[^.]*)"
        found = re.search(pattern, str(error))
        if found is None:
            raise
        raise ChildProcessError(
            f"data-loading worker died: {found[1]} {found[2]}; the system kills one when memory runs out (fewer"
            " data.workers need less); with data.workers 0 the training process loads by itself"
        ) from None


def guard_worker(_worker: int) -> None:
    """Set up a loader process so that it survives the signals that a scheduler sends to every process of a job.

    The training process answers SIGTERM and SIGUSR1 with one more whole step and a checkpoint, and needs its workers
    for that. A worker obeys only a SIGTERM that its training process sent, and ends when that process has ended.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # Torch's handler would report too little shared memory. The pipe of signals belongs to the training process.
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this worker on its parent's SIGTERM or end, even while the main thread is blocked writing into a pipe."""
    parent, started_by = multiprocessing.parent_process(), os.getppid()
    assert parent is not None
    while os.getppid() == started_by and parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, _PARENT_CHECK_SECONDS)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)


def _damaged_shard(splits: Iterable[ShardedRows]) -> str | None:
    """Describe the first shard that no longer has the size that the manifest states."""
    for rows in splits:
        try:
            rows.check_sizes()
        except ValueError as error:
            return str(error)
    return None


def _end_on_bus_error(splits: Iterable[ShardedRows], end: Callable[[ValueError], None]) -> None:
    """From now on, call `end` in a thread if this process gets a bus error; its argument names the file if known."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    # The handler itself does nothing: it must exist so that the interpreter writes the number into the pipe.
    signal.signal(signal.SIGBUS, lambda number, frame: None)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def wait() -> None:
        while signal.SIGBUS not in os.read(read_end, 4096):
            pass
        end(ValueError(_damaged_shard(splits) or UNKNOWN_BUS_ERROR))

    threading.Thread(target=wait, name="bus errors", daemon=True).start()
