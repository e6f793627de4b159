"""Loader processes: the signals they live through, how they end with their parent, and how their death is told."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator

_PARENT_CHECK_SECONDS = 2.0


def guard_worker(_worker: int) -> None:
    """Keep a worker at work through the signals that a scheduler sends to every process of a job.

    The training process answers SIGTERM and SIGUSR1 with one more whole step and a checkpoint, and needs its workers
    for that. They obey the SIGTERM of that process alone, and end when it is gone.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # Torch would say that shared memory is too small, and the parent's pipe of signals is not this process's.
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this worker when its parent says so or has ended, even while the main thread waits to write into a pipe."""
    parent, started_by = multiprocessing.parent_process(), os.getppid()
    assert parent is not None
    while os.getppid() == started_by and parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, _PARENT_CHECK_SECONDS)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)


@contextlib.contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Make torch's error for a worker that died one line; it may be raised wherever the process happens to be.

    Raises:
        ChildProcessError: a worker died, which one, and how.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.search(
            r"DataLoader worker \((.*?)\) (is killed by signal: \w+|exited unexpectedly[^.]*)", str(error)
        )
        if found is None:
            raise
        raise ChildProcessError(
            f"data-loading worker died: {found[1]} {found[2]}; the system kills one when memory runs out (fewer"
            " data.workers need less); with data.workers 0 the training process loads by itself"
        ) from None
