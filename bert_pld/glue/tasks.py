"""The tasks of GLUE: their files, columns, labels and metrics, and how a metric is computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:  # The command's options list the tasks, without torch.
    from bert_pld.finetuning.batches import Encoded

_DEFAULT_LEARNING_RATE = 5e-5


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a task: its names in the download, on the Hub and on the leaderboard."""

    name: str
    """`train`, `dev` or `test`; for MNLI's dev and test sets with `_matched` or `_mismatched`."""
    files: tuple[str, ...]
    """Possible file names in the task's folder; the first one that exists is read."""
    hub: str
    """Name of the split in the Hub's dataset."""
    predictions: str | None = None
    """File name that the leaderboard expects; None for train and dev splits."""


_TRAIN = Split("train", ("train.tsv",), "train")
_DEV = Split("dev", ("dev.tsv",), "validation")
_BINARY = ("0", "1")
_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_THREE_WAY = ("entailment", "neutral", "contradiction")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task of GLUE."""

    name: str
    hub: str
    """Name of the configuration in the Hub's dataset."""
    columns: tuple[str, ...]
    """Header names of the one or two sentences."""
    label: str = "label"
    """Header name of the label."""
    labels: tuple[str, ...] | None = _BINARY
    """The classes as the files write them, in the Hub's order; None: the label is a score from 0 to 5."""
    metrics: tuple[str, ...] = ("accuracy",)
    train: Split | None = _TRAIN
    dev: tuple[Split, ...] = (_DEV,)
    test: tuple[Split, ...]
    other_folders: tuple[str, ...] = ()
    """Other names that the task's folder may have in the download."""
    hub_columns: tuple[str, ...] = ()
    """Names of the sentences' columns in the Hub's dataset; empty: the same as `columns`."""
    positions: dict[str, int] | None = None
    """Column name → position, for train and dev files without a header."""
    paper_lr: float | None = None
    """Learning rate in the paper's table."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Possible names of the task's folder in the download."""
        return (self.name, *self.other_folders)

    @property
    def is_regression(self) -> bool:
        """Whether labels are scores rather than classes."""
        return self.labels is None

    @property
    def num_outputs(self) -> int:
        """Number of the classifier's outputs."""
        return 1 if self.labels is None else len(self.labels)

    @property
    def tags_words(self) -> bool:
        """Whether each word has a label: never."""
        return False

    @property
    def learning_rate(self) -> float:
        """The rate that is tried if none is given."""
        return self.paper_lr or _DEFAULT_LEARNING_RATE

    def score(self, predictions: NDArray[np.float64], split: Encoded) -> dict[str, float]:
        """Return the task's metrics."""
        assert split.labels is not None
        return score(self.metrics, predictions, split.labels)

    def selection(self, scores: dict[str, float]) -> float:
        """Return the mean of the metrics."""
        return mean_score(scores)

    def write_predictions(self, path: Path, predictions: NDArray[np.float64], split: Encoded | None = None) -> None:
        """Write a file for the leaderboard: `index` and `prediction`; classes as words, scores with three decimals.

        The predictions are in the order of the test file.
        """
        if self.labels is None:
            words = [f"{value:.3f}" for value in predictions]
        else:
            words = [self.labels[int(value)] for value in predictions]
        rows = "".join(f"{index}\t{word}\n" for index, word in enumerate(words))
        path.write_text(f"index\tprediction\n{rows}", encoding="utf-8")


def _task(name: str, hub: str, columns: tuple[str, ...], **others: Any) -> Task:
    """Return a task; by default its test split is one file."""
    test = (Split("test", ("test.tsv",), "test", f"{name}.tsv"),)
    return Task(name=name, hub=hub, columns=columns, **{"test": test, **others})


DIAGNOSTIC = _task(
    "AX",
    "ax",
    _PAIR,
    labels=_THREE_WAY,
    metrics=("matthews",),
    train=None,
    dev=(),
    test=(Split("test", ("diagnostic.tsv", "test.tsv", "AX.tsv"), "test", "AX.tsv"),),
    other_folders=("diagnostic",),
    hub_columns=("premise", "hypothesis"),
)
"""The diagnostic set; the model fine-tuned on MNLI predicts it."""

_TASKS = (
    _task("RTE", "rte", _PAIR, labels=_ENTAILMENT, paper_lr=7e-5),
    _task(
        "MRPC",
        "mrpc",
        ("#1 String", "#2 String"),
        label="Quality",
        metrics=("f1", "accuracy"),
        # Do not add msr_paraphrase_train.txt to the train files: it also holds the rows of dev.tsv.
        test=(Split("test", ("test.tsv", "msr_paraphrase_test.txt"), "test", "MRPC.tsv"),),
        hub_columns=_PAIR,
        paper_lr=9e-5,
    ),
    _task("STS-B", "stsb", _PAIR, label="score", labels=None, metrics=("pearson", "spearman"), paper_lr=7e-5),
    _task("CoLA", "cola", ("sentence",), metrics=("matthews",), positions={"sentence": 3, "label": 1}, paper_lr=5e-5),
    _task("SST-2", "sst2", ("sentence",), paper_lr=7e-5),
    _task("QNLI", "qnli", ("question", "sentence"), labels=_ENTAILMENT, paper_lr=9e-5),
    _task("QQP", "qqp", ("question1", "question2"), label="is_duplicate", metrics=("f1", "accuracy"), paper_lr=2e-4),
    _task(
        "MNLI",
        "mnli",
        _PAIR,
        label="gold_label",
        labels=_THREE_WAY,
        dev=(
            Split("dev_matched", ("dev_matched.tsv",), "validation_matched"),
            Split("dev_mismatched", ("dev_mismatched.tsv",), "validation_mismatched"),
        ),
        test=(
            Split("test_matched", ("test_matched.tsv",), "test_matched", "MNLI-m.tsv"),
            Split("test_mismatched", ("test_mismatched.tsv",), "test_mismatched", "MNLI-mm.tsv"),
        ),
        hub_columns=("premise", "hypothesis"),
        paper_lr=3e-5,
    ),
    _task("WNLI", "wnli", _PAIR),
)
TASKS = {task.name: task for task in _TASKS}
"""Name → task, in the order of the paper's table; then WNLI, which the paper leaves out."""


def find_tasks(names: list[str]) -> list[Task]:
    """Return the tasks with these names, in any case; `all` stands for all of them. An unknown one is a ValueError."""
    if [name.lower() for name in names] == ["all"]:
        return list(TASKS.values())
    by_name = {name.lower(): task for name, task in TASKS.items()}
    for name in names:
        if name.lower() not in by_name:
            hint = "; the diagnostic set AX is predicted with MNLI" if name.lower() in ("ax", "diagnostic") else ""
            raise ValueError(f"--task {name}: unknown task; must be all, or some of {', '.join(TASKS)}{hint}")
    return [by_name[name] for name in dict.fromkeys(name.lower() for name in names)]


def score(metrics: Sequence[str], predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Return each metric by name, times 100. A coefficient that is undefined, as for constant predictions, is 0.

    The metrics are some of `accuracy`, `f1` (of class 1), `matthews`, `pearson`, `spearman`. Predictions and labels are
    classes or scores, `[rows]`.
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted, expected = np.asarray(predictions), np.asarray(labels)
    is_constant = len(predicted) < 2 or np.ptp(predicted) == 0 or np.ptp(expected) == 0
    values = {}
    for name in metrics:
        if name == "accuracy":
            value = accuracy_score(expected, predicted)
        elif name == "f1":
            value = f1_score(expected, predicted, zero_division=0.0)
        elif name == "matthews":
            value = matthews_corrcoef(expected, predicted)
        else:
            correlation = {"pearson": pearsonr, "spearman": spearmanr}[name]
            value = 0.0 if is_constant else correlation(predicted, expected)[0]
        values[name] = 100.0 * float(value) if math.isfinite(value) else 0.0
    return values


def mean_score(scores: dict[str, float]) -> float:
    """Return the mean of a task's metrics, which ranks its fine-tunings."""
    return sum(scores.values()) / len(scores)
