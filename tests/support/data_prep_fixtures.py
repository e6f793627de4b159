"""Fixtures for the tests of data preparation: a corpus, a finished build, small tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from made_up_corpus import build, write_corpus

from bert_pld.data.shards import Manifest
from bert_pld.files import file_sha256
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


def rewrite_shard(path: Path, dataset: str, place: Any, value: int) -> None:
    """Change values of a training shard, and update its record, so that only its content is invalid."""
    with h5py.File(path, "r+") as file:
        file[dataset][place] = value
        lengths = np.array(file["length"], np.int64) if "length" in file else None
    manifest = Manifest.read(path.parent)
    records = manifest.splits["train"]
    (index,) = (index for index, record in enumerate(records) if record.file == path.name)
    tokens = records[index].tokens if lengths is None else int(lengths.sum())
    size, checksum = path.stat().st_size, file_sha256(path)
    records[index] = dataclasses.replace(records[index], tokens=tokens, bytes=size, sha256=checksum)
    manifest.write(path.parent)
