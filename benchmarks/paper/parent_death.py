"""A process that is told to stop when the one that started it dies, even of SIGKILL: Linux's parent death signal."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def stop_with_parent() -> Callable[[], None] | None:
    """For `Popen(preexec_fn=…)`: the child gets SIGTERM when its parent is gone. None where the system cannot do that.

    To the kernel the parent is the thread that forks: start such a child from one that lives as long as the process.
    """
    if _LIBC is None:
        return None
    libc, parent = _LIBC, os.getpid()

    def in_child() -> None:
        # Until the program is loaded the parent's handler is in place, which would swallow the signal.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
        if os.getppid() != parent:  # it died before that
            os._exit(128 + signal.SIGTERM)

    return in_child
