"""Commands that start in a fraction of a second: they are forked off a server that has imported torch and DeepSpeed.

    with ForkedRuns(clean_environment()) as runs:
        pid = runs.start(["python", "-m", "bert_pld.pretrain", *arguments], stdout_file, stderr_file)
        os.kill(pid, signal.SIGKILL)
        code = runs.wait(pid)

Each command is its own process, as if a launcher had started it; only the imports are shared.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ForkedRuns:
    """A server of commands, which get its environment; on exit it ends with every process that it has started."""

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
        self._server.wait(timeout=300)

    def _ask(self, **request: Any) -> int:
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def start(self, command: list[str], stdout: Path, stderr: Path) -> int:
        """Start a command, `python -m MODULE …`; append its output to two files; return its process id."""
        pid = self._ask(start=command[2:], stdout=str(stdout), stderr=str(stderr), cwd=os.getcwd())
        self._running.add(pid)
        return pid

    def wait(self, pid: int, timeout: float = 600.0) -> int:
        """Return the exit code, negative for a signal. A process that exceeds the timeout is killed."""
        code = self._ask(wait=pid, timeout=timeout)
        self._running.discard(pid)
        return code


# Modules whose import takes longest; the commands import the rest themselves.
_SHARED_IMPORTS = {
    "bert_pld.evaluate": [],
    "bert_pld.pretrain": ["bert_pld.training.loop"],
    "bert_pld.finetune_glue": ["bert_pld.finetuning.loop", "transformers.models.auto", "sklearn.metrics"],
    "bert_pld.finetune_tokens": ["bert_pld.finetuning.loop", "transformers.models.auto", "bert_pld.tagging.task"],
}


def serve() -> None:
    """Answer requests from stdin until it ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # Imports print.
    import deepspeed  # noqa: F401
    import torch._dynamo  # noqa: F401  # Imported by the first optimizer, and the slowest import of all.

    from bert_pld.cli import run_as_rank

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = _wait(request["wait"], request["timeout"])
        else:
            name, *arguments = request["start"]
            command, *_ = [importlib.import_module(module) for module in (name, *_SHARED_IMPORTS[name])]
            answer = os.fork()
            if answer == 0:
                os.close(answers)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                for number, stream in ((1, "stdout"), (2, "stderr")):
                    os.dup2(os.open(request[stream], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
                os.chdir(request["cwd"])
                run_as_rank(command.main, command.build_parser(), arguments)
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
