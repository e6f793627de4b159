"""Runs that start in a fraction of a second: children of a process that has imported everything once.

    with ForkedRuns(clean_environment()) as runs:
        pid = runs.start([...arguments of bert_pld.pretrain...], stdout_file, stderr_file)
        os.kill(pid, signal.SIGKILL)
        code = runs.wait(pid)

Each run is a process of its own, as a launcher would start it; only importing torch and DeepSpeed is shared.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ForkedRuns:
    """A server of pretraining runs, ended with everything it started.

    Args:
        environment: of all runs.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._running: set[int] = set()

    def __enter__(self) -> ForkedRuns:
        self._server = subprocess.Popen(
            [sys.executable, __file__], env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self._server.stdin.close()
        self._server.wait(timeout=60)

    def _ask(self, **question: Any) -> int:
        print(json.dumps(question), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def start(self, arguments: list[str], stdout: Path, stderr: Path) -> int:
        """Start a run whose output is appended to two files; returns its process id."""
        pid = self._ask(start=arguments, stdout=str(stdout), stderr=str(stderr), cwd=os.getcwd())
        self._running.add(pid)
        return pid

    def wait(self, pid: int, timeout: float = 300.0) -> int:
        """Its exit code; negative for a signal. A run that takes longer is killed."""
        code = self._ask(wait=pid, timeout=timeout)
        self._running.discard(pid)
        return code


def serve() -> None:
    """Answer questions from stdin until it ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # imports print
    import deepspeed  # noqa: F401
    import torch._dynamo  # noqa: F401  # an optimizer's first import, and the longest

    import bert_pld.training.loop  # noqa: F401
    from bert_pld.cli import run_as_rank
    from bert_pld.pretrain import build_parser, main

    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            answer = _wait(question["wait"], question["timeout"])
        else:
            answer = os.fork()
            if answer == 0:
                os.close(answers)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                for number, name in ((1, "stdout"), (2, "stderr")):
                    os.dup2(os.open(question[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
                os.chdir(question["cwd"])
                run_as_rank(main, build_parser(), question["start"])
        os.write(answers, f"{answer}\n".encode())


def _wait(pid: int, timeout: float) -> int:
    deadline = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, 9)
        time.sleep(0.005)


if __name__ == "__main__":
    serve()
