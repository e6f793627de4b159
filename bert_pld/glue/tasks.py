"""The tasks of GLUE: where sentences and labels stand, what is measured, how the leaderboard wants answers."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Split:
    """One file of a task, by the names it may have, and what it is called here."""

    name: str
    """`train`, `dev`, `test`, or with `_matched` and `_mismatched`."""
    files: tuple[str, ...]
    """In the task's folder of the download; the first that is there is read."""
    hub: str
    """Its split in the Hub's dataset."""
    predictions: str | None = None
    """Of a test split: the leaderboard's file."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of GLUE.

    Columns are header names; of a file without a header they are positions.
    """

    name: str
    folders: tuple[str, ...]
    hub: str
    """Its configuration in the Hub's dataset."""
    columns: tuple[str, ...]
    """One sentence or two."""
    label: str
    labels: tuple[str, ...] | None
    """As the files write them, in the Hub's order; None: a score from 0 to 5."""
    metrics: tuple[str, ...]
    hub_columns: tuple[str, ...]
    train: Split | None
    dev: tuple[Split, ...]
    test: tuple[Split, ...]
    positions: dict[str, int] | None = None
    """Where train and dev files have no header."""
    paper_lr: float | None = None
    """The learning rate of the paper's table."""

    @property
    def is_regression(self) -> bool:
        """Whether labels are scores."""
        return self.labels is None

    @property
    def num_outputs(self) -> int:
        """Of the classifier."""
        return 1 if self.labels is None else len(self.labels)


def _plain(name: str, predictions: str | None = None) -> tuple[Split, tuple[Split, ...], tuple[Split, ...]]:
    return (
        Split("train", ("train.tsv",), "train"),
        (Split("dev", ("dev.tsv",), "validation"),),
        (Split("test", ("test.tsv",), "test", predictions or f"{name}.tsv"),),
    )


def _task(
    name: str,
    hub: str,
    columns: tuple[str, ...],
    label: str,
    labels: tuple[str, ...] | None,
    metrics: tuple[str, ...],
    *,
    hub_columns: tuple[str, ...] | None = None,
    positions: dict[str, int] | None = None,
    paper_lr: float | None = None,
) -> Task:
    train, dev, test = _plain(name)
    return Task(
        name,
        (name,),
        hub,
        columns,
        label,
        labels,
        metrics,
        hub_columns or columns,
        train,
        dev,
        test,
        positions,
        paper_lr,
    )


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_THREE_WAY = ("entailment", "neutral", "contradiction")

_MRPC = dataclasses.replace(
    _task(
        "MRPC",
        "mrpc",
        ("#1 String", "#2 String"),
        "Quality",
        _BINARY,
        ("f1", "accuracy"),
        hub_columns=("sentence1", "sentence2"),
        paper_lr=9e-5,
    ),
    # Not msr_paraphrase_train.txt, which holds the rows of dev.tsv too.
    test=(Split("test", ("test.tsv", "msr_paraphrase_test.txt"), "test", "MRPC.tsv"),),
)
_MNLI = Task(
    "MNLI",
    ("MNLI",),
    "mnli",
    ("sentence1", "sentence2"),
    "gold_label",
    _THREE_WAY,
    ("accuracy",),
    ("premise", "hypothesis"),
    Split("train", ("train.tsv",), "train"),
    (
        Split("dev_matched", ("dev_matched.tsv",), "validation_matched"),
        Split("dev_mismatched", ("dev_mismatched.tsv",), "validation_mismatched"),
    ),
    (
        Split("test_matched", ("test_matched.tsv",), "test_matched", "MNLI-m.tsv"),
        Split("test_mismatched", ("test_mismatched.tsv",), "test_mismatched", "MNLI-mm.tsv"),
    ),
    paper_lr=3e-5,
)
DIAGNOSTIC = Task(
    "AX",
    ("AX", "diagnostic"),
    "ax",
    ("sentence1", "sentence2"),
    "label",
    _THREE_WAY,
    ("matthews",),
    ("premise", "hypothesis"),
    None,
    (),
    (Split("test", ("diagnostic.tsv", "test.tsv", "AX.tsv"), "test", "AX.tsv"),),
)
"""Answered by the model of MNLI."""

TASKS = {
    task.name: task
    for task in (
        _task("RTE", "rte", ("sentence1", "sentence2"), "label", _ENTAILMENT, ("accuracy",), paper_lr=7e-5),
        _MRPC,
        _task("STS-B", "stsb", ("sentence1", "sentence2"), "score", None, ("pearson", "spearman"), paper_lr=7e-5),
        _task(
            "CoLA",
            "cola",
            ("sentence",),
            "label",
            _BINARY,
            ("matthews",),
            positions={"sentence": 3, "label": 1},
            paper_lr=5e-5,
        ),
        _task("SST-2", "sst2", ("sentence",), "label", _BINARY, ("accuracy",), paper_lr=7e-5),
        _task("QNLI", "qnli", ("question", "sentence"), "label", _ENTAILMENT, ("accuracy",), paper_lr=9e-5),
        _task("QQP", "qqp", ("question1", "question2"), "is_duplicate", _BINARY, ("f1", "accuracy"), paper_lr=2e-4),
        _MNLI,
        _task("WNLI", "wnli", ("sentence1", "sentence2"), "label", _BINARY, ("accuracy",)),
    )
}
"""By name, in the order of the paper's table; WNLI, which the paper leaves out, last."""


def find_tasks(names: list[str]) -> list[Task]:
    """Tasks by name, whatever its case; `all` for all of them.

    Raises:
        ValueError: an unknown name.
    """
    if [name.lower() for name in names] == ["all"]:
        return list(TASKS.values())
    by_name = {name.lower(): task for name, task in TASKS.items()}
    for name in names:
        if name.lower() not in by_name:
            hint = "; the diagnostic set AX comes with MNLI" if name.lower() in ("ax", "diagnostic") else ""
            raise ValueError(f"--task {name}: must be all or among {', '.join(TASKS)}{hint}")
    return [by_name[name] for name in dict.fromkeys(name.lower() for name in names)]
