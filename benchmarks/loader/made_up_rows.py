"""Data directories of random rows, of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bert_pld.data.masking import VOCABULARY
from bert_pld.data.shards import Manifest, ShardAttributes, shard_name, vocabulary_hash, write_shard

_VOCABULARY_SIZE = 30_522
_SPECIAL = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
_ROWS_PER_SHARD = 32_768
_CONTINUATIONS_FROM = 22_000
"""Ids from here on continue a word: about a quarter of them, as in English text."""
_PADDED_SHARE = 0.1


def write_made_up_rows(directory: Path, num_rows: int, seq_length: int) -> Path:
    """Write `num_rows` random sentence pairs of `seq_length` tokens, a tenth of them padded; return `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.Generator(np.random.PCG64(0))
    entries = [f"##{i}" if i >= _CONTINUATIONS_FROM else f"w{i}" for i in range(_VOCABULARY_SIZE)]
    for name, identity in _SPECIAL.items():
        entries[identity] = f"[{name.upper()}]"
    attributes = ShardAttributes(
        vocabulary_hash(entries), len(entries), "uncased", seq_length, "mlm+nsp", "made up by the benchmark", 0
    )
    records = []
    for index, first in enumerate(range(0, num_rows, _ROWS_PER_SHARD)):
        count = min(_ROWS_PER_SHARD, num_rows - first)
        rows = _rows(generator, count, seq_length)
        records.append(write_shard(directory / shard_name("train", index), rows, attributes))
    (directory / VOCABULARY).write_text("".join(entry + "\n" for entry in entries), encoding="utf-8")
    Manifest(attributes, {"train": records}, {"train": 1}, _SPECIAL).write(directory)
    return directory


def _rows(generator: np.random.Generator, count: int, seq_length: int) -> dict[str, np.ndarray]:
    short = generator.integers(seq_length // 2, seq_length, count)
    length = np.where(generator.random(count) < _PADDED_SHARE, short, seq_length)
    segment_b_start, each = length // 2, np.arange(count)
    ids = generator.integers(_SPECIAL["mask"] + 1, _VOCABULARY_SIZE, (count, seq_length), dtype=np.int32)
    ids[:, 0] = _SPECIAL["cls"]
    ids[each, segment_b_start - 1] = ids[each, length - 1] = _SPECIAL["sep"]
    ids[np.arange(seq_length) >= length[:, None]] = _SPECIAL["pad"]
    label = generator.integers(0, 2, count)
    return {"input_ids": ids, "length": length, "segment_b_start": segment_b_start, "next_sentence_label": label}
