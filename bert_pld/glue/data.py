"""A task's splits, read from the official download's TSV files or from the Hub's dataset, as token ids.

In these files quotes are part of the text. Some files begin with a byte-order mark, some have CRLF, and CoLA's have no
header except in its test file. Some rows lack a sentence, or have no label (`-`): these are counted and left out of
train and dev. All rows of a test file stay, because the leaderboard expects a prediction for each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bert_pld.files import file_sha256
from bert_pld.finetuning.batches import Encoded, TaskData
from bert_pld.glue.tasks import DIAGNOSTIC, Split, Task

HUB_DATASET = "nyu-mll/glue"


@dataclasses.dataclass(frozen=True)
class Examples:
    """The rows of a split, as text."""

    first: list[str]
    second: list[str] | None
    """The second sentences; None for tasks on single sentences."""
    labels: list[float] | None
    """Class indices or scores; None for a test split."""
    left_out: int = 0
    """Number of rows without a sentence or a label."""

    def __len__(self) -> int:
        return len(self.first)


@dataclasses.dataclass(frozen=True)
class GlueSource:
    """The tasks of one download, or of the Hub."""

    glue_dir: str
    """As for `read_split`."""
    tokenizer: Any
    max_seq_length: int
    max_train_rows: int | None = None

    def read(self, task: Task) -> TaskData:
        """Return a task's splits; the model of MNLI also answers the diagnostic set."""
        return read_task(
            task,
            self.glue_dir,
            self.tokenizer,
            self.max_seq_length,
            max_train_rows=self.max_train_rows,
            also_test=DIAGNOSTIC if task.name == "MNLI" else None,
        )

    def identity(self, task: Task) -> str:
        """Return the SHA-256 of the files of train and dev, or the name of the Hub's dataset."""
        return identify_data(task, self.glue_dir)


def read_task(
    task: Task,
    glue_dir: str,
    tokenizer: Any,
    max_seq_length: int,
    *,
    max_train_rows: int | None = None,
    also_test: Task | None = None,
) -> TaskData:
    """Read and tokenize a task's splits; `glue_dir` and errors are those of `read_split`.

    The tokenizer is a fast one of transformers. `max_seq_length` includes special tokens. `max_train_rows` keeps only
    the first training rows of the file. `also_test` is another task whose test files the same model answers.
    """
    left_out: dict[str, int] = {}

    def encoded(owner: Task, split: Split) -> Encoded | None:
        examples = read_split(owner, split, glue_dir)
        if examples is None:
            return None
        if examples.left_out:
            left_out[split.name] = examples.left_out
        if split.name == "train":
            examples = _first_rows(examples, max_train_rows)
        return encode(tokenizer, examples, max_seq_length)

    assert task.train is not None
    train = encoded(task, task.train)
    assert train is not None
    dev = {split.name: found for split in task.dev if (found := encoded(task, split)) is not None}
    tests = [(owner, split) for owner in (task, also_test) if owner is not None for split in owner.test]
    test = {
        split.predictions: found
        for owner, split in tests
        if split.predictions is not None and (found := encoded(owner, split)) is not None
    }
    return TaskData(task, train, dev, test, left_out)


def _first_rows(examples: Examples, count: int | None) -> Examples:
    second = None if examples.second is None else examples.second[:count]
    labels = None if examples.labels is None else examples.labels[:count]
    return dataclasses.replace(examples, first=examples.first[:count], second=second, labels=labels)


def encode(tokenizer: Any, examples: Examples, max_seq_length: int) -> Encoded:
    """Tokenize a split; in a pair that is too long, the longer sentence is cut first. Arguments: see `read_task`."""
    pairs = {} if examples.second is None else {"text_pair": examples.second}
    options = {"truncation": True, "max_length": max_seq_length, "return_overflowing_tokens": False}
    found = tokenizer(examples.first, **pairs, **options)
    ids: list[list[int]] = found["input_ids"]
    types = found.get("token_type_ids") or [[0] * len(row) for row in ids]
    labels = None if examples.labels is None else np.asarray(examples.labels)
    return Encoded(ids, types, labels, sum(len(row) == max_seq_length for row in ids))


def read_split(task: Task, split: Split, glue_dir: str) -> Examples | None:
    """Return the examples of a split; None for a test split whose file does not exist.

    `glue_dir` is the download's folder; or `hub`; or `hub=NAME`, where NAME is a dataset on the Hub or a folder that
    `datasets` can load. A file that is missing, not a table of this task or without a usable row is a ValueError.
    """
    has_labels = not split.name.startswith("test")
    if dataset := _hub_dataset(glue_dir):
        rows = _hub_rows(task, split, dataset, has_labels)
        source = f"{glue_dir} {task.hub}/{split.hub}"
    else:
        path = _require_file(task, split, Path(glue_dir)) if has_labels else _find_file(task, split, Path(glue_dir))
        if path is None:
            return None
        rows, source = _file_rows(task, path, has_labels), str(path)
    first: list[str] = []
    second: list[str] = []
    labels: list[float] = []
    left_out = 0
    for texts, label in rows:
        if has_labels and (label is None or any(not text.strip() for text in texts)):
            left_out += 1
            continue
        first.append(texts[0])
        second.append(texts[-1])
        labels.append(0.0 if label is None else label)
    if not first:
        raise ValueError(f"{source}: no usable row ({left_out} rows lack a sentence or a label)")
    are_pairs = len(task.columns) == 2
    return Examples(first, second if are_pairs else None, labels if has_labels else None, left_out)


def identify_data(task: Task, glue_dir: str) -> str:
    """Return an identity of a task's train and dev rows: the SHA-256 of the files, or the name of the Hub's dataset."""
    if dataset := _hub_dataset(glue_dir):
        return dataset
    assert task.train is not None
    return " ".join(file_sha256(_require_file(task, split, Path(glue_dir))) for split in (task.train, *task.dev))


def _hub_dataset(glue_dir: str) -> str | None:
    kind, _, name = glue_dir.partition("=")
    return (name or HUB_DATASET) if kind == "hub" else None


def _require_file(task: Task, split: Split, glue_dir: Path) -> Path:
    path = _find_file(task, split, glue_dir)
    if path is None:
        folders = " or ".join(str(glue_dir / name) for name in task.folders)
        raise ValueError(f"{folders}: {' or '.join(split.files)} not found, required for {task.name}")
    return path


def _find_file(task: Task, split: Split, glue_dir: Path) -> Path | None:
    paths = (glue_dir / folder / file for folder in task.folders for file in split.files)
    return next((path for path in paths if path.is_file()), None)


Row = tuple[tuple[str, ...], float | None]
"""Sentences and label of an example."""


def _file_rows(task: Task, path: Path, has_labels: bool) -> Iterator[Row]:
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            lines = file.read().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    table = [line.rstrip("\r").split("\t") for line in lines]
    while table and table[-1] == [""]:
        table.pop()
    names = [*task.columns, *([task.label] if has_labels else [])]
    header = table[0] if table else []
    if all(name in header for name in names):
        positions = [header.index(name) for name in names]
        table = table[1:]
    elif task.positions is not None and has_labels:
        positions = [task.positions[name] for name in names]
    else:
        missing = next(name for name in names if name not in header)
        raise ValueError(f"{path}: no column {missing!r}; the first line is {' | '.join(header)[:80]!r}")
    count = len(task.columns)
    for row in table:
        texts = tuple(row[position] if position < len(row) else "" for position in positions[:count])
        label = _parse_label(task, row[positions[count]]) if has_labels and positions[count] < len(row) else None
        yield texts, label


def _parse_label(task: Task, text: str) -> float | None:
    """Return a label's class index or score; None for an invalid label."""
    text = text.strip()
    if task.labels is not None:
        return float(task.labels.index(text)) if text in task.labels else None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _hub_rows(task: Task, split: Split, dataset: str, has_labels: bool) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        rows: Any = load_dataset(dataset, task.hub, split=split.hub)
    except Exception as error:  # its types vary: offline, unknown name, no such split
        why = " ".join(str(error).split())
        raise ValueError(f"{dataset}, {task.hub}, {split.hub}: cannot be loaded ({why})") from None
    columns = task.hub_columns or task.columns
    missing = [name for name in (*columns, "label") if name not in rows.column_names]
    if missing:
        raise ValueError(f"{dataset}, {task.hub}: no column {missing[0]!r}; it has {', '.join(rows.column_names)}")
    for row in rows:
        label = float(row["label"])
        is_unlabelled = not has_labels or (label < 0 and not task.is_regression)
        yield tuple(row[name] for name in columns), None if is_unlabelled else label
