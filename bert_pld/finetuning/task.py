"""What a task gives to the loop: the shape of its labels, its figures, and the form of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Task(Protocol):
    """A task for fine-tuning."""

    @property
    def name(self) -> str:
        """Name of the task, and of its folder of results."""

    @property
    def num_outputs(self) -> int:
        """Number of the classifier's outputs."""

    @property
    def is_regression(self) -> bool:
        """Whether labels are scores rather than classes."""

    @property
    def tags_words(self) -> bool:
        """Whether each word has a label, rather than each row."""

    @property
    def learning_rate(self) -> float:
        """The rate that is tried if none is given."""

    def score(self, predictions: NDArray[np.float64], split: Any) -> dict[str, float]:
        """Return each figure of a split (`Encoded`, with labels) by name, times 100."""

    def selection(self, scores: dict[str, float]) -> float:
        """Return the number by which epochs are compared."""

    def write_predictions(self, path: Path, predictions: NDArray[np.float64], split: Any) -> None:
        """Write a test split's answers."""


class DataSource(Protocol):
    """Where the splits of tasks come from."""

    def read(self, task: Any) -> Any:
        """Return the task's `TaskData`; a ValueError names what cannot be read."""

    def identity(self, task: Any) -> str:
        """Return an identity of the train and dev rows; results with other data are not reused."""
