"""Cases that may crash or hang compiled code, in a child process: an outcome for every case."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

CASES = int(os.environ.get("BERT_PLD_FUZZ_CASES", "15"))
"""Number of cases of each test with random damage; scripts/test.sh tries 40."""
SECONDS = 10
"""Longest time that a case may compute; it may wait for a minute, because other tests share the cores."""


def outcomes(check: Callable[[int], Any]) -> list[Any]:
    """Return `check(case)` for each case, which must be JSON; in its place a text if the case raised, crashed or hung.

    A ValueError is what a user gets as one line: its text must be one, and is returned as `refused: …`.
    """
    found: list[Any] = []
    while len(found) < CASES:
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            try:
                _run(check, len(found), write_end)
            finally:
                os._exit(0)
        os.close(write_end)
        with open(read_end, encoding="utf-8") as lines:
            found += [json.loads(line) for line in lines]
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            found.append(f"ended by signal {signal.Signals(os.WTERMSIG(status)).name}")
        elif len(found) < CASES:  # For example an outcome that is no JSON.
            found.append("ended without an outcome")
    return found


def _run(check: Callable[[int], Any], first: int, write_end: int) -> None:
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)  # which ends the process, also within compiled code
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for case in range(first, CASES):
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(60)
        try:
            outcome = check(case)
        except ValueError as error:
            outcome = "refused: " + " ".join(str(error).split())
        except BaseException as error:
            outcome = f"raised {type(error).__name__}: {error}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        os.write(write_end, (json.dumps(outcome) + "\n").encode())
