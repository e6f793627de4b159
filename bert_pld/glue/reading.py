"""Examples out of the official download's TSV files, or out of the Hub's dataset, quirks and all.

Quotes in these files are text, not quoting; some begin with a byte-order mark, some have CRLF; CoLA's have no header
except for its test file; some rows lack a field, or a label (`-`): those are counted and left out of training and dev.
A test file's rows all stay, for the leaderboard wants an answer to each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_pld.files import file_sha256
from bert_pld.glue.tasks import Split, Task

HUB_DATASET = "nyu-mll/glue"


@dataclasses.dataclass(frozen=True)
class Examples:
    """A split's rows."""

    first: list[str]
    second: list[str] | None
    """Of pairs."""
    labels: list[float] | None
    """A class's index, or a score; None without labels."""
    left_out: int = 0
    """Rows without a sentence or a label."""

    def __len__(self) -> int:
        return len(self.first)


def read_split(task: Task, split: Split, where: str) -> Examples | None:
    """A split's examples; None where a test file is not there.

    Args:
        task: whose.
        split: which.
        where: the download's folder; `hub`, a dataset's name or a folder `datasets` can load, after `hub=`.

    Raises:
        ValueError: a file is missing, is no table of this task, or holds no usable row.
    """
    labelled = not split.name.startswith("test")
    if where == "hub" or where.startswith("hub="):
        rows = _hub_rows(task, split, where.partition("=")[2] or HUB_DATASET, labelled)
        source = f"{where} {task.hub}/{split.hub}"
    else:
        path = _find(task, split, Path(where)) if labelled else _find_if_there(task, split, Path(where))
        if path is None:
            return None
        rows, source = _file_rows(task, path, labelled), str(path)
    first: list[str] = []
    second: list[str] = []
    labels: list[float] = []
    left_out = 0
    for texts, label in rows:
        if labelled and (label is None or any(not text.strip() for text in texts)):
            left_out += 1
            continue
        first.append(texts[0])
        second.append(texts[-1])
        labels.append(0.0 if label is None else label)
    if not first:
        raise ValueError(f"{source}: has no usable row ({left_out} lack a sentence or a label)")
    pairs = len(task.columns) == 2
    return Examples(first, second if pairs else None, labels if labelled else None, left_out)


def identify_data(task: Task, where: str) -> str:
    """What tells a task's training and dev rows from others: the files' SHA-256; after `hub=` the name that was given.

    Args:
        task: whose.
        where: as for `read_split`.

    Raises:
        ValueError: a file is missing.
    """
    if where == "hub" or where.startswith("hub="):
        return where.partition("=")[2] or HUB_DATASET
    assert task.train is not None
    return " ".join(file_sha256(_find(task, split, Path(where))) for split in (task.train, *task.dev))


def _find(task: Task, split: Split, folder: Path) -> Path:
    path = _find_if_there(task, split, folder)
    if path is None:
        folders = " or ".join(str(folder / name) for name in task.folders)
        raise ValueError(f"{folders}: has no {' or '.join(split.files)}, which {task.name} needs")
    return path


def _find_if_there(task: Task, split: Split, folder: Path) -> Path | None:
    places = (folder / name / file for name in task.folders for file in split.files)
    return next((path for path in places if path.is_file()), None)


Row = tuple[tuple[str, ...], float | None]


def _file_rows(task: Task, path: Path, labelled: bool) -> Iterator[Row]:
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
    wanted = [*task.columns, *([task.label] if labelled else [])]
    header = table[0] if table else []
    if all(name in header for name in wanted):
        positions = [header.index(name) for name in wanted]
        table = table[1:]
    elif task.positions is not None and labelled:
        positions = [task.positions[name] for name in wanted]
    else:
        missing = next(name for name in wanted if name not in header)
        raise ValueError(f"{path}: has no column {missing!r}; its first line is {' | '.join(header)[:80]!r}")
    count = len(task.columns)
    for row in table:
        texts = tuple(row[at] if at < len(row) else "" for at in positions[:count])
        label = _label(task, row[positions[count]]) if labelled and positions[count] < len(row) else None
        yield texts, label


def _label(task: Task, text: str) -> float | None:
    """A label's number; None for one that is none."""
    text = text.strip()
    if task.labels is not None:
        return float(task.labels.index(text)) if text in task.labels else None
    try:
        score = float(text)
    except ValueError:
        return None
    return score if math.isfinite(score) else None


def _hub_rows(task: Task, split: Split, dataset: str, labelled: bool) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        rows: Any = load_dataset(dataset, task.hub, split=split.hub)
    except Exception as error:  # of many kinds: offline, unknown name, no such split
        why = " ".join(str(error).split())
        raise ValueError(f"{dataset}, {task.hub}, {split.hub}: cannot be loaded ({why})") from None
    missing = [name for name in (*task.hub_columns, "label") if name not in rows.column_names]
    if missing:
        raise ValueError(f"{dataset}, {task.hub}: has no column {missing[0]!r}; has {', '.join(rows.column_names)}")
    for row in rows:
        label = float(row["label"])
        unlabelled = not labelled or (label < 0 and not task.is_regression)
        yield tuple(row[name] for name in task.hub_columns), None if unlabelled else label
