"""All fine-tunings of a command: every task with every learning rate and seed, each with a folder for its result.

A result is reused only under the same conditions. Beside it are the predictions for the leaderboard.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from bert_pld.files import write_json
from bert_pld.finetuning.batches import TaskData
from bert_pld.finetuning.encoder import PretrainedEncoder
from bert_pld.finetuning.interrupted import Interrupted
from bert_pld.finetuning.loop import Outcome, SharedSignal, finetune
from bert_pld.finetuning.settings import Settings
from bert_pld.finetuning.task import DataSource, Task

RESULT = "result.json"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The settings that the fine-tunings of all tasks share."""

    encoder: PretrainedEncoder
    model: str
    """The model as the user named it."""
    source: DataSource
    output_dir: Path
    learning_rates: Sequence[float] | None
    """Learning rates to try; None: the task's own."""
    seeds: Sequence[int]
    settings: Settings
    device: torch.device
    signal: SharedSignal

    def run_task(self, task: Task) -> list[dict[str, Any]]:
        """Fine-tune with every learning rate and seed; return all results, those of earlier calls included.

        Raises:
            ValueError: the data cannot be read, or a result was obtained under other conditions.
            StoppedError: a stop signal came; finished results and the fine-tuning under way are saved.
        """
        planned = self._plan(task)
        earlier = [folder.read() for _, _, folder in planned]
        results = [result for result in earlier if result is not None]
        print_line(f"{task.name}: {len(planned)} fine-tunings, {len(results)} of them done")
        for result in filter(diverged, results):
            print_line(divergence_warning(result), sys.stderr)
        if len(results) == len(planned):
            return results
        self.signal.check()
        data = self.source.read(task)
        print_line(f"{task.name}: {data.describe()}")
        for rate, seed, folder in (plan for plan, found in zip(planned, earlier, strict=True) if found is None):
            self.signal.check()
            began = time.perf_counter()
            interrupted = Interrupted(folder.path, folder.conditions)
            outcome = finetune(
                self.encoder,
                data,
                self.settings,
                learning_rate=rate,
                seed=seed,
                device=self.device,
                check=self.signal.check,
                interrupted=interrupted,
            )
            results.append(folder.describe(task, outcome, data, time.perf_counter() - began))
            if dist.get_rank() == 0:
                folder.write(task, results[-1], outcome.predictions, data)
                interrupted.remove()
            if outcome.best_epoch is None:
                print_line(divergence_warning(results[-1]), sys.stderr)
            else:
                scores = ", ".join(
                    f"{split} {metric} {value:.1f}"
                    for split, values in outcome.scores.items()
                    for metric, value in values.items()
                )
                epochs = f"epoch {outcome.best_epoch} of {self.settings.epochs}"
                print_line(f"{task.name}, lr {rate:g}, seed {seed}: {scores} ({epochs})")
            dist.barrier()
        return results

    def _plan(self, task: Task) -> list[tuple[float, int, ResultFolder]]:
        """Return learning rate, seed and result folder of each fine-tuning of a task.

        A ValueError names a folder of the task with a result of another model, other data or other settings, at any
        learning rate and seed: the summary would take the mean of both.
        """
        rates = self.learning_rates or [task.learning_rate]
        shared = {
            "weights": self.encoder.weights,
            "data": self.source.identity(task),
            "from_scratch": self.encoder.from_scratch,
            **dataclasses.asdict(self.settings),
        }
        for path in sorted((self.output_dir / task.name).glob(f"*/{RESULT}")):
            ResultFolder(path.parent, self.model, shared).read()
        planned = []
        for rate, seed in itertools.product(dict.fromkeys(rates), dict.fromkeys(self.seeds)):
            path = self.output_dir / task.name / f"lr_{rate:g}_seed_{seed}"
            conditions = {**shared, "learning_rate": rate, "seed": seed}
            planned.append((rate, seed, ResultFolder(path, self.model, conditions)))
        return planned


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print a line on rank 0 at once."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=file, flush=True)


class DamagedResultError(ValueError):
    """A result file that is cut short or not a fine-tuning's result."""


def read_result(path: Path) -> dict[str, Any]:
    """Return a fine-tuning's result; a file that is cut short or was changed is a DamagedResultError that names it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        conditions = found["conditions"]
        is_complete = {"learning_rate", "seed"} <= conditions.keys() and isinstance(found["dev"], dict)
    except (ValueError, KeyError, TypeError, AttributeError):
        is_complete = False
    if not is_complete:
        raise DamagedResultError(
            f"{path}: not a complete fine-tuning result; run the same command again, or remove the file"
        )
    return dict(found)


@dataclasses.dataclass(frozen=True)
class ResultFolder:
    """The folder of one fine-tuning's result."""

    path: Path
    model: str
    """The model as the user named it. It is not compared; the identity of its weights is, as one of the conditions."""
    conditions: dict[str, Any]
    """Everything that determines the result."""

    def read(self) -> dict[str, Any] | None:
        """Return the result of an earlier call; None if there is none, or a damaged one, which is then replaced.

        A result obtained under other conditions is a ValueError.
        """
        try:
            found = read_result(self.path / RESULT)
        except (FileNotFoundError, DamagedResultError):
            return None
        differing = [key for key, value in self.conditions.items() if found["conditions"].get(key) != value]
        if differing:
            key = differing[0]
            raise ValueError(
                f"{self.path}: holds a result with {key} = {found['conditions'].get(key)!r}, not"
                f" {self.conditions[key]!r}; give another --output_dir"
            )
        return found

    def describe(self, task: Task, outcome: Outcome, data: TaskData, seconds: float) -> dict[str, Any]:
        """Return the result as `write` saves it; rank 0, which has the predictions, adds the scores of test splits."""
        test = {
            name: task.score(values, data.test[name])
            for name, values in outcome.predictions.items()
            if data.test[name].labels is not None
        }
        return {
            "task": task.name,
            "model": self.model,
            "conditions": self.conditions,
            "versions": _versions(),
            "steps": outcome.steps,
            "diverged_at_step": outcome.diverged_at_step,
            "best_epoch": outcome.best_epoch,
            "dev": outcome.scores,
            **({"test": test} if test else {}),
            "epochs": outcome.epochs,
            "left_out_rows": dict(data.left_out),
            "seconds": round(seconds, 1),
        }

    def write(
        self, task: Task, result: Mapping[str, Any], predictions: Mapping[str, NDArray[np.float64]], data: TaskData
    ) -> None:
        """Write the predictions, then the result: a folder with a result is complete."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name, values in predictions.items():
            task.write_predictions(self.path / name, values, data.test[name])
        write_json(self.path / RESULT, result)


def _versions() -> dict[str, str]:
    import torch
    import transformers

    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def diverged(result: Mapping[str, Any]) -> bool:
    """Return whether a fine-tuning diverged, so that its result has no score."""
    return result.get("diverged_at_step") is not None


def divergence_warning(result: Mapping[str, Any]) -> str:
    """Return one line about a fine-tuning that diverged."""
    conditions = result["conditions"]
    return (
        f"warning: {result['task']}, lr {conditions['learning_rate']:g}, seed {conditions['seed']}: diverged; loss or"
        f" weights are not finite at step {result['diverged_at_step']} of {result['steps']}, so it has no score"
    )


def by_learning_rate(results: Iterable[dict[str, Any]]) -> dict[float, list[dict[str, Any]]]:
    """Group results by their learning rate."""
    groups: dict[float, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["conditions"]["learning_rate"], []).append(result)
    return groups


def scored_rates(results: Iterable[dict[str, Any]]) -> dict[float, list[dict[str, Any]]]:
    """Return the learning rates at which no seed diverged, with their results."""
    return {rate: runs for rate, runs in by_learning_rate(results).items() if not any(map(diverged, runs))}
