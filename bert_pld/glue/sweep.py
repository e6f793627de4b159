"""All fine-tunings of a command: every task with every learning rate and seed, except those that are finished."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist

from bert_pld.glue.data import identify_data, read_task
from bert_pld.glue.encoder import PretrainedEncoder
from bert_pld.glue.finetune import Settings, SharedSignal, finetune
from bert_pld.glue.results import ResultFolder, diverged, divergence_warning
from bert_pld.glue.tasks import DIAGNOSTIC, Task

_DEFAULT_LEARNING_RATE = 5e-5


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The settings that the fine-tunings of all tasks share."""

    encoder: PretrainedEncoder
    model: str
    """The model as the user named it."""
    glue_dir: str
    """The data, as for `read_split`."""
    output_dir: Path
    learning_rates: Sequence[float] | None
    """Learning rates to try; None: the one in the paper's table for each task."""
    seeds: Sequence[int]
    settings: Settings
    device: torch.device
    signal: SharedSignal

    def run_task(self, task: Task) -> list[dict[str, Any]]:
        """Fine-tune with every learning rate and seed; return all results, those of earlier calls included.

        Raises:
            ValueError: the data cannot be read, or a result was obtained under other conditions.
            StoppedError: a stop signal came; finished results stay.
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
        data = read_task(
            task,
            self.glue_dir,
            self.encoder.tokenizer,
            self.settings.max_seq_length,
            max_train_rows=self.settings.max_train_rows,
            also_test=DIAGNOSTIC if task.name == "MNLI" else None,
        )
        print_line(f"{task.name}: {data.describe()}")
        for rate, seed, folder in (plan for plan, found in zip(planned, earlier, strict=True) if found is None):
            self.signal.check()
            began = time.perf_counter()
            outcome = finetune(
                self.encoder,
                data,
                self.settings,
                learning_rate=rate,
                seed=seed,
                device=self.device,
                check=self.signal.check,
            )
            results.append(folder.describe(task, outcome, data.left_out, time.perf_counter() - began))
            if dist.get_rank() == 0:
                folder.write(task, results[-1], outcome.predictions)
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
        """Return learning rate, seed and result folder of each fine-tuning of a task."""
        rates = self.learning_rates or [task.paper_lr or _DEFAULT_LEARNING_RATE]
        shared = {
            "weights": self.encoder.weights,
            "data": identify_data(task, self.glue_dir),
            "from_scratch": self.encoder.from_scratch,
        }
        planned = []
        for rate, seed in itertools.product(dict.fromkeys(rates), dict.fromkeys(self.seeds)):
            path = self.output_dir / task.name / f"lr_{rate:g}_seed_{seed}"
            conditions = {**shared, "learning_rate": rate, "seed": seed, **dataclasses.asdict(self.settings)}
            planned.append((rate, seed, ResultFolder(path, self.model, conditions)))
        return planned


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print a line on rank 0 at once."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=file, flush=True)
