"""Synthetic shards as NVIDIA's DeepLearningExamples and academic-budget-BERT write them, built with plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from runs import VOCABULARY

PAD, UNK, CLS, SEP, MASK = range(5)
FIRST_WORD = 5


def make_static_rows(
    generator: np.random.Generator, count: int, seq_length: int = 32, predictions: int = 6, pairs: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return learnable rows, in which each token is its predecessor plus two: as datasets and as native columns."""
    words = len(VOCABULARY) - FIRST_WORD
    stored: dict[str, Any] = {}
    widths = {"input_ids input_mask segment_ids": seq_length, "masked_lm_positions masked_lm_ids": predictions}
    for names, width in widths.items():
        stored |= {name: np.zeros((count, width), np.int64) for name in names.split()}
    native: dict[str, Any] = {"input_ids": np.zeros((count, seq_length), np.int64)}
    for name in ("length", "segment_b_start", "next_sentence_label"):
        native[name] = np.zeros(count, np.int64)
    stored["next_sentence_labels"] = native["next_sentence_label"]
    for row in range(count):
        length = seq_length if row % 3 else int(generator.integers(seq_length // 2, seq_length))
        start = length // 2 if pairs else length
        ids = FIRST_WORD + (int(generator.integers(words)) + 2 * np.arange(length)) % words
        ids[0], ids[length - 1] = CLS, SEP
        if pairs:
            ids[start - 1] = SEP
        native["input_ids"][row, :length] = ids
        native["length"][row], native["segment_b_start"][row] = length, start
        native["next_sentence_label"][row] = generator.integers(2) if pairs else -1
        candidates = [i for i in range(length) if ids[i] >= FIRST_WORD]
        masked = sorted(generator.choice(candidates, predictions if row % 5 == 0 else 3, replace=False).tolist())
        for column, position in enumerate(masked):
            stored["masked_lm_positions"][row, column] = position
            stored["masked_lm_ids"][row, column] = ids[position]
            action = generator.random()
            if action < 0.8:
                ids[position] = MASK
            elif action < 0.9:
                ids[position] = generator.integers(FIRST_WORD, len(VOCABULARY))
        stored["input_ids"][row, :length] = ids
        stored["input_mask"][row, :length] = 1
        stored["segment_ids"][row, start:length] = 1
    if not pairs:
        del stored["next_sentence_labels"]
    return stored, native


def write_static_shard(path: Path, stored: dict[str, np.ndarray]) -> None:
    """Write int32 and int8 datasets with gzip and without attributes."""
    with h5py.File(path, "w") as file:
        for name, values in stored.items():
            small = name in ("input_mask", "segment_ids", "next_sentence_labels")
            file.create_dataset(name, data=values, dtype="i1" if small else "i4", compression="gzip")


def write_static_corpus(
    directory: Path,
    *,
    train: tuple[int, ...] = (41, 7, 48),
    test: tuple[int, ...] = (12,),
    names: str = "nvidia",
    vocabulary: bool = True,
    **shape: Any,
) -> dict[str, dict[str, np.ndarray]]:
    """Write a directory of uneven shards; return each split's native columns, and its datasets as `stored_…`."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(3)
    written: dict[str, dict[str, np.ndarray]] = {}
    for split, word, counts in (("train", "training", train), ("validation", "test", test)):
        parts = []
        for index, count in enumerate(counts):
            stored, native = make_static_rows(generator, count, **shape)
            academic = f"{'train' if split == 'train' else 'test'}_shard_{index}.hdf5"
            write_static_shard(directory / (f"books_{word}_{index}.hdf5" if names == "nvidia" else academic), stored)
            parts.append({**native, **{f"stored_{name}": values for name, values in stored.items()}})
        if parts:
            written[split] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if vocabulary:
        (directory / "vocab.txt").write_text("".join(f"{entry}\n" for entry in VOCABULARY))
    return written
