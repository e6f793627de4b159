"""Stop a child process when its parent dies, even by SIGKILL: Linux's parent death signal."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def stop_with_parent() -> Callable[[], None] | None:
    """A `preexec_fn` for `Popen`: the child gets SIGTERM when its parent dies. None on other systems than Linux.

    For the kernel the parent is the thread that forks, so that thread must live as long as the process.
    """
    if _LIBC is None:
        return None
    libc, parent = _LIBC, os.getpid()

    def in_child() -> None:
        # Until the program is loaded the parent's handler is installed, which would ignore the signal.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
        if os.getppid() != parent:  # the parent has died before prctl
            os._exit(128 + signal.SIGTERM)

    return in_child
