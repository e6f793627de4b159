"""Run `python -m benchmarks` in this process."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import build_parser, main
from bert_pld import cli


def run_benchmark(*arguments: str) -> str | int | None:
    """Run a subject, the first argument, with its options; return the exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(main, build_parser(arguments[0]), arguments[1:])
    return stopped.value.code
