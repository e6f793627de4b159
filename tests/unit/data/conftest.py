"""Synthetic data directories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_rows import SPECIAL_TOKENS, make_entries, make_rows, with_documents

from bert_pld.data.masking import MaskingVocabulary
from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import Manifest, ShardAttributes, shard_name, vocabulary_hash, write_shard


@pytest.fixture
def make_data_dir(tmp_path):
    """Return a function that writes a data directory and returns it with the written rows of each split."""

    def make(
        *,
        counts=(23, 0, 14),
        validation=10,
        seq_length=32,
        vocabulary_size=1000,
        objective="mlm+nsp",
        full=False,
        documents=False,
    ) -> tuple[Path, dict]:
        generator = np.random.Generator(np.random.PCG64(7))
        entries = make_entries(vocabulary_size)
        attributes = ShardAttributes(
            vocabulary_hash(entries),
            vocabulary_size,
            "uncased",
            seq_length,
            objective,
            "synthetic",
            7,
            document_starts=documents,
        )
        splits, written = {}, {}
        for split, sizes in (("train", counts), ("validation", (validation,))):
            shards = [make_rows(generator, n, seq_length, vocabulary_size, objective, full) for n in sizes]
            if documents:
                shards = [with_documents(rows, generator) for rows in shards]
            paths = [tmp_path / shard_name(split, i) for i in range(len(shards))]
            splits[split] = [write_shard(path, shard, attributes) for path, shard in zip(paths, shards, strict=True)]
            written[split] = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
        (tmp_path / "vocab.txt").write_text("".join(entry + "\n" for entry in entries), encoding="utf-8")
        Manifest(attributes, splits, {"train": 1, "validation": 1}, dict(SPECIAL_TOKENS)).write(tmp_path)
        return tmp_path, written

    return make


@pytest.fixture
def train_rows(make_data_dir):
    """37 rows in three shards, one of them empty."""
    return ShardedRows(make_data_dir()[0], "train")


@pytest.fixture
def vocabulary():
    """1,000 entries, as in the data directories."""
    continuation = np.array([entry.startswith("##") for entry in make_entries(1000)])
    return MaskingVocabulary(1000, **{f"{k}_id": v for k, v in SPECIAL_TOKENS.items()}, is_continuation=continuation)
