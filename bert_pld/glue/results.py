"""Results on disk: one folder a fine-tuning, kept under its settings; answers in the leaderboard's format."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_pld.files import write_atomically
from bert_pld.glue.finetuning import Outcome, Settings
from bert_pld.glue.tasks import Task

RESULT = "result.json"


class DamagedResultError(ValueError):
    """A result that cannot be read as one."""


def read_result(path: Path) -> dict[str, Any]:
    """A fine-tuning's result.

    Raises:
        DamagedResultError: it was cut short or changed; names the file.
        OSError: it is not there, or cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        conditions = found["conditions"]
        whole = {"learning_rate", "seed"} <= conditions.keys() and isinstance(found["dev"], dict)
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DamagedResultError(
            f"{path}: not a fine-tuning's result, cut short or damaged; fine-tune again with the same command, or"
            " remove the file"
        )
    return dict(found)


@dataclasses.dataclass(frozen=True)
class ResultFolder:
    """Where one fine-tuning's result lies: `<output_dir>/<task>/lr_<rate>_seed_<k>`."""

    path: Path
    model: str
    """As it was given; what counts are its weights, among the conditions."""
    conditions: dict[str, Any]

    def read(self) -> dict[str, Any] | None:
        """The result, if this fine-tuning was done before.

        Raises:
            ValueError: what is there was done under other conditions.
        """
        try:
            found = read_result(self.path / RESULT)
        except (FileNotFoundError, DamagedResultError):
            return None  # done again
        differing = [key for key, value in self.conditions.items() if found["conditions"].get(key) != value]
        if differing:
            key = differing[0]
            raise ValueError(
                f"{self.path}: was made with {key} = {found['conditions'].get(key)!r}, not {self.conditions[key]!r};"
                " give another --output_dir"
            )
        return found

    def describe(self, task: Task, outcome: Outcome, left_out: Mapping[str, int], seconds: float) -> dict[str, Any]:
        """The result as it is written."""
        return {
            "task": task.name,
            "model": self.model,
            "conditions": self.conditions,
            "versions": _versions(),
            "steps": outcome.steps,
            "diverged_at_step": outcome.diverged_at_step,
            "best_epoch": outcome.best_epoch,
            "dev": outcome.scores,
            "epochs": outcome.epochs,
            "left_out_rows": dict(left_out),
            "seconds": round(seconds, 1),
        }

    def write(self, task: Task, result: Mapping[str, Any], predictions: Mapping[str, NDArray[np.float64]]) -> None:
        """Write answers first, then the result, which says that all is there."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name, answers in predictions.items():
            write_predictions(self.path / name, task, answers)
        write_atomically(self.path / RESULT, json.dumps(result, indent=2) + "\n")


def _versions() -> dict[str, str]:
    import torch
    import transformers

    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def result_folder(
    output_dir: Path,
    task: Task,
    model: str,
    learning_rate: float,
    seed: int,
    settings: Settings,
    *,
    weights: str,
    data: str,
    from_scratch: bool = False,
) -> ResultFolder:
    """The place of a fine-tuning under these conditions.

    Args:
        output_dir: of all tasks.
        task: which.
        model: as it was given.
        learning_rate: of the classifier and the encoder.
        seed: of the classifier, the order and dropout.
        settings: the same for all.
        weights: of the encoder, as `Encoder.weights` has them.
        data: as `reading.identify_data` has it.
        from_scratch: whether the encoder's weights are fresh ones instead.
    """
    conditions = {
        "weights": weights,
        "data": data,
        "from_scratch": from_scratch,
        "learning_rate": learning_rate,
        "seed": seed,
        **dataclasses.asdict(settings),
    }
    return ResultFolder(output_dir / task.name / f"lr_{learning_rate:g}_seed_{seed}", model, conditions)


def write_predictions(path: Path, task: Task, answers: NDArray[np.float64]) -> None:
    """The leaderboard's file: `index`, `prediction`; labels of entailment as words, scores with three digits.

    Args:
        path: such as `RTE.tsv`.
        task: whose.
        answers: classes or scores, `[rows]` in the test file's order.
    """
    if task.labels is None:
        said = [f"{answer:.3f}" for answer in answers]
    else:
        said = [task.labels[int(answer)] for answer in answers]
    rows = "".join(f"{index}\t{answer}\n" for index, answer in enumerate(said))
    path.write_text(f"index\tprediction\n{rows}", encoding="utf-8")
