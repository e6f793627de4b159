"""Fixtures for the tests of data preparation: a corpus, a finished build, small tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_corpus import build, write_corpus

from data_prep import plan
from data_prep.rows import splitting


@pytest.fixture
def small_tasks(monkeypatch):
    """Tasks of a few kilobytes, so that a small corpus has many."""
    monkeypatch.setattr(plan, "READING_TASK_BYTES", 1 << 14)
    monkeypatch.setattr(splitting, "GROUP_BYTES", 1 << 13)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text")


@pytest.fixture
def tiny_vocab(tmp_path) -> str:
    """The path of a vocabulary of the special tokens and one word."""
    path = tmp_path / "tiny_vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n")
    return str(path)


@pytest.fixture(scope="session")
def sound_build(corpus, tmp_path_factory) -> Path:
    """A finished mlm+nsp build; tests copy it before they damage it."""
    output_dir = tmp_path_factory.mktemp("built") / "data"
    assert build(corpus, output_dir) == 0
    return output_dir
