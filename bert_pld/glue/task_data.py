"""All splits of a task, read and tokenized."""

from __future__ import annotations

import dataclasses
from typing import Any

from bert_pld.glue.batches import Encoded, encode
from bert_pld.glue.finetuning import Settings
from bert_pld.glue.reading import Examples, read_split
from bert_pld.glue.tasks import Split, Task


@dataclasses.dataclass(frozen=True)
class TaskData:
    """What a fine-tuning needs of a task."""

    train: Encoded
    dev: dict[str, Encoded]
    """By split."""
    test: dict[str, Encoded]
    """By the leaderboard's file, of those test files that are there."""
    left_out: dict[str, int]
    """Split → rows without a sentence or a label."""

    def describe(self) -> str:
        """Sizes, for people."""
        parts = [f"train {len(self.train):,}", *(f"{name} {len(split):,}" for name, split in self.dev.items())]
        parts += [f"{name} {len(split):,}" for name, split in self.test.items()]
        lost = sum(self.left_out.values())
        cut = self.train.truncated + sum(split.truncated for split in self.dev.values())
        parts += [f"{lost:,} rows without a sentence or a label left out"] if lost else []
        parts += [f"{cut:,} examples of train and dev fill the longest sequence or were cut"] if cut else []
        return ", ".join(parts)


def read_task(task: Task, answered_too: Task | None, where: str, tokenizer: Any, settings: Settings) -> TaskData:
    """Read a task's files.

    Args:
        task: which.
        answered_too: another, whose test files are answered by the same model.
        where: as for `read_split`.
        tokenizer: a fast one of transformers.
        settings: `max_seq_length` and `max_train_rows` are used.

    Raises:
        ValueError: as `read_split`.
    """
    left_out: dict[str, int] = {}

    def encoded(of: Task, split: Split) -> Encoded | None:
        examples = read_split(of, split, where)
        if examples is None:
            return None
        if examples.left_out:
            left_out[split.name] = examples.left_out
        if split.name == "train":
            examples = _first(examples, settings.max_train_rows)
        return encode(tokenizer, examples, settings.max_seq_length)

    assert task.train is not None
    train = encoded(task, task.train)
    assert train is not None
    dev = {split.name: found for split in task.dev if (found := encoded(task, split)) is not None}
    tests = [(of, split) for of in (task, answered_too) if of is not None for split in of.test]
    answers = {
        split.predictions: found
        for of, split in tests
        if split.predictions is not None and (found := encoded(of, split)) is not None
    }
    return TaskData(train, dev, answers, left_out)


def _first(examples: Examples, count: int | None) -> Examples:
    if count is None:
        return examples
    second = None if examples.second is None else examples.second[:count]
    labels = None if examples.labels is None else examples.labels[:count]
    return dataclasses.replace(examples, first=examples.first[:count], second=second, labels=labels)
