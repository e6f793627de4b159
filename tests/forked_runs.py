"""Runs that start in a fraction of a second: children of a process that has imported everything once.

    with ForkedRuns() as runs:
        pid = runs.start([...arguments of bert_pld.pretrain...], log)
        os.kill(pid, signal.SIGKILL)
        code = runs.wait(pid)

Each run is a process of its own, as a launcher would start it; only importing torch and DeepSpeed is shared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from runs import clean_environment


class ForkedRuns:
    """A server of pretraining runs, ended with everything it started."""

    def __enter__(self) -> ForkedRuns:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._running: set[int] = set()
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._running:
            os.kill(pid, 9)
        self._server.stdin.close()
        self._server.wait(timeout=60)

    def _ask(self, **question: Any) -> int:
        print(json.dumps(question), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def start(self, arguments: list[str], log: Path) -> int:
        """Start a run whose output is appended to `log`; returns its process id."""
        pid = self._ask(start=arguments, log=str(log))
        self._running.add(pid)
        return pid

    def wait(self, pid: int) -> int:
        """Its exit code; negative for a signal."""
        code = self._ask(wait=pid)
        self._running.discard(pid)
        return code


def serve() -> None:
    """Answer questions from stdin until it ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # imports print
    import deepspeed  # noqa: F401

    import bert_pld.train.loop  # noqa: F401
    from bert_pld.cli import run_as_rank
    from bert_pld.pretrain import build_parser, main

    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            answer = os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                log = os.open(question["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                for stream in (1, 2):
                    os.dup2(log, stream)
                os.close(answers)
                run_as_rank(main, build_parser(), question["start"])
        os.write(answers, f"{answer}\n".encode())


if __name__ == "__main__":
    serve()
