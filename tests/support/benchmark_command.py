"""Run `python -m benchmarks` in this process, and curves of made-up runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import build_parser, main
from benchmarks.paper.curves import Curve
from bert_pld import cli


def run_benchmark(*arguments: str) -> str | int | None:
    """Run a subject, the first argument, with its options; return the exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(main, build_parser(arguments[0]), arguments[1:])
    return stopped.value.code


def measure(folder: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Run a subject, which must end with an exit code; return the result that it wrote to a file in a folder."""
    path = folder / "result.json"
    assert run_benchmark(*arguments, f"--json={path}") == code
    return dict(json.loads(path.read_text()))


def check_error(capsys: pytest.CaptureFixture[str], message: str, *arguments: str) -> None:
    """Run a subject, which must fail with one line that contains a message."""
    assert run_benchmark(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def curve(loss: Sequence[float], seconds: Sequence[float], *, flops: float = 100.0, diverged: bool = False) -> Curve:
    """A run that was evaluated every 100 samples."""
    samples = [100 * (i + 1) for i in range(len(loss))]
    accuracy = [0.1] * len(loss)
    return Curve(samples, list(map(float, seconds)), list(loss), accuracy, 64 * len(samples), flops, 4.0, diverged)
