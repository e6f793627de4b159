"""A clear end where a file is cut short while it is mapped: reading what is gone raises SIGBUS, not an exception.

The instruction that faults is repeated for as long as the signal's handler returns, so nothing after it in its thread
can be reached. Another thread can: the interpreter's own handler writes the signal's number into a pipe, and NumPy
reads mapped files without holding the interpreter's lock.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable

from bert_pld.data.rows import ShardedRows

UNKNOWN = (
    "bus error: a file was cut short, or its file system failed, while it was read; `python -m data_prep verify` checks"
    " shards"
)


def fault_of(splits: Iterable[ShardedRows | None]) -> str | None:
    """The first shard that no longer has its size, in words."""
    for rows in splits:
        try:
            if rows is not None:
                rows.check_sizes()
        except ValueError as error:
            return str(error)
    return None


def end_on_bus_error(splits: Iterable[ShardedRows | None], end: Callable[[ValueError], None]) -> None:
    """From now on a bus error of this process calls `end`, in a thread, with an error that names the file.

    To be called in the main thread. `end` must not return: the thread that faulted cannot go on.

    Args:
        splits: whose files are mapped.
        end: reports the error and ends the process.
    """
    if sys.platform == "win32":
        return
    watched = tuple(splits)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.signal(signal.SIGBUS, lambda number, frame: None)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def wait() -> None:
        while signal.SIGBUS not in os.read(read_end, 4096):
            pass
        end(ValueError(fault_of(watched) or UNKNOWN))

    threading.Thread(target=wait, name="bus errors", daemon=True).start()
