"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Tensors of tests are small: more threads cost more than they save, and several workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from repository import REPOSITORY
from runs import LAUNCHER_VARIABLES, write_corpus

if not torch.cuda.is_available():
    # Triton reads it when a kernel is decorated, so it must be set before any import of a kernel.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that no test changes."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def run_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """Function that runs a script of scripts/measure/ and returns its exit code, output and errors."""

    from bert_pld import cli

    def run(name: str, *arguments: object) -> tuple[Any, str, str]:
        monkeypatch.syspath_prepend(REPOSITORY / "scripts" / "measure")
        script = importlib.import_module(name)
        with pytest.raises(SystemExit) as stopped:
            cli.run(script.main, script.build_parser(), list(map(str, arguments)))
        printed, errors = capsys.readouterr()
        return stopped.value.code, printed, errors

    return run


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpret each kernel as one program, for speed; several are for comparisons with the eager model."""
    from bert_pld.kernels import tiles

    monkeypatch.setattr(tiles, "INTERPRETED_TILES", 1)
    monkeypatch.setattr(tiles, "INTERPRETED_PROGRAMS", 1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need a GPU if there is none, and thorough tests unless BERT_PLD_THOROUGH is set."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if item.get_closest_marker("thorough") and not os.environ.get("BERT_PLD_THOROUGH"):
        pytest.skip("needs BERT_PLD_THOROUGH=1")


@pytest.fixture(scope="module", autouse=True)
def no_rank_is_left() -> Iterator[None]:
    """End the process group that tests of a file leave, and forget its rank: those of other files share the process."""
    before = {name: os.environ[name] for name in LAUNCHER_VARIABLES if name in os.environ}
    yield
    if torch.distributed.is_initialized():
        comm = sys.modules.get("deepspeed.comm")  # It also forgets the groups that it has made within this one.
        (comm if comm is not None and comm.is_initialized() else torch.distributed).destroy_process_group()
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.fixture(scope="module")
def process_group():
    """A process group of this process alone, for tests that make DeepSpeed's engines."""
    from deepspeed import comm

    from bert_pld.cluster.process_group import join_process_group

    join_process_group()
    yield
    comm.destroy_process_group()
