"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from runs import write_corpus

if not torch.cuda.is_available():
    # Read when a kernel is decorated, so it must be set before any is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that tests only read."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none, and what repeats a test for one more setting unless asked for."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if item.get_closest_marker("thorough") and not os.environ.get("BERT_PLD_THOROUGH"):
        pytest.skip("set BERT_PLD_THOROUGH=1 for it")
