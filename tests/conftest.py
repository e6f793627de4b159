"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Tensors of tests are small: more threads cost more than they save, and several workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from repository import REPOSITORY
from runs import write_corpus

if not torch.cuda.is_available():
    # Read when a kernel is decorated, so it must be set before any is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that tests only read."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def run_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """Run a script of scripts/measure/ by its name: its exit code, what it printed, and its errors."""

    from bert_pld import cli

    def run(name: str, *arguments: object) -> tuple[Any, str, str]:
        monkeypatch.syspath_prepend(REPOSITORY / "scripts" / "measure")
        script = importlib.import_module(name)
        with pytest.raises(SystemExit) as stopped:
            cli.run(script.main, script.build_parser(), list(map(str, arguments)))
        printed, errors = capsys.readouterr()
        return stopped.value.code, printed, errors

    return run


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none, and what repeats a test for one more setting unless asked for."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if item.get_closest_marker("thorough") and not os.environ.get("BERT_PLD_THOROUGH"):
        pytest.skip("set BERT_PLD_THOROUGH=1 for it")
