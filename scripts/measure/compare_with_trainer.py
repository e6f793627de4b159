"""Fine-tune the same encoder with bert_pld and with transformers' `Trainer`, and compare the dev scores.

    python scripts/measure/compare_with_trainer.py --model exported/ --task CoLA --glue_dir glue/ --json out.json

Both use the same weights (also of the classifier), learning rate, schedule, clipping, epochs and batch size. The order
of the samples and the dropout masks differ, so scores agree only within the noise of seeds. Requires `accelerate` and
at most one visible GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers

from bert_pld.cli import check_json_option, make_parser, run_as_rank
from bert_pld.cluster.process_group import join_process_group
from bert_pld.files import write_json
from bert_pld.finetune_glue import hugging_face_folder
from bert_pld.finetuning.batches import Encoded, TaskData
from bert_pld.finetuning.encoder import PretrainedEncoder, load_encoder
from bert_pld.finetuning.loop import finetune
from bert_pld.finetuning.settings import Settings
from bert_pld.glue.data import read_task
from bert_pld.glue.tasks import find_tasks, mean_score, score


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Encoded examples in the form that `Trainer` requires."""

    def __init__(self, encoded: Encoded, regression: bool) -> None:
        self.encoded, self.regression = encoded, regression

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, row: int) -> dict[str, Any]:
        assert self.encoded.labels is not None
        label = float(self.encoded.labels[row])
        return {
            "input_ids": self.encoded.input_ids[row],
            "token_type_ids": self.encoded.token_type_ids[row],
            "labels": label if self.regression else int(label),
        }


def by_trainer(encoder: PretrainedEncoder, data: TaskData, rate: float, seed: int, settings: Settings) -> float:
    """Return the best epoch's dev score (mean over metrics and splits, × 100) of `Trainer`."""
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    task = data.task
    steps = settings.epochs * math.ceil(len(data.train) / settings.batch_size)
    scores: list[float] = []
    dev = {name: _Rows(split, task.is_regression) for name, split in data.dev.items()}

    class _Score(TrainerCallback):
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            values = []
            for rows in dev.values():
                logits = np.asarray(trainer.predict(rows).predictions)
                answers = logits.squeeze(-1).clip(0, 5) if task.is_regression else logits.argmax(-1)
                values.append(mean_score(score(task.metrics, answers, rows.encoded.labels)))
            scores.append(statistics.fmean(values))

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, seed=seed, num_train_epochs=settings.epochs, use_cpu=not torch.cuda.is_available(),
            per_device_train_batch_size=settings.batch_size, per_device_eval_batch_size=2 * settings.batch_size,
            learning_rate=rate, lr_scheduler_type="linear", warmup_steps=math.ceil(settings.warmup_share * steps),
            weight_decay=settings.weight_decay, adam_epsilon=1e-6, max_grad_norm=settings.gradient_clipping,
            save_strategy="no", report_to="none", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(
            model=encoder.classifier(task, seed),
            args=arguments,
            train_dataset=_Rows(data.train, task.is_regression),
            data_collator=DataCollatorWithPadding(encoder.tokenizer),
            callbacks=[_Score()],
        )
        trainer.train()
    return max(scores)


def refuse_several_gpus(visible: int) -> None:
    """Raise ValueError for several GPUs: `Trainer` would use DataParallel with a full batch on each."""
    if visible > 1:
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES: {visible} GPUs are visible, and Trainer's batch would be {visible} times as"
            " large; must be one, as with CUDA_VISIBLE_DEVICES=0"
        )


def standard_error(figures: dict[str, list[float]]) -> float | None:
    """Return the standard error of the difference of the means; None for one seed, which says nothing about it."""
    if any(len(scores) < 2 for scores in figures.values()):
        return None
    return math.hypot(*(statistics.stdev(scores) / math.sqrt(len(scores)) for scores in figures.values()))


def main(options: argparse.Namespace) -> int:
    """Fine-tune with both, seed by seed, and print the difference of the mean scores and its standard error."""
    refuse_several_gpus(torch.cuda.device_count())
    check_json_option(options.json)
    task, *others = find_tasks([options.task])
    if others:
        raise ValueError(f"--task {options.task}: must be one task")
    if importlib.util.find_spec("accelerate") is None:
        raise ValueError("transformers' Trainer requires accelerate; pip install accelerate")
    device = join_process_group()
    names = ("epochs", "batch_size", "max_seq_length", "max_train_rows")
    settings = Settings(**{name: getattr(options, name) for name in names})
    settings.check(dist.get_world_size(), device.type)
    figures: dict[str, list[float]] = {"bert_pld": [], "trainer": []}
    with hugging_face_folder(options.model) as folder:
        encoder = load_encoder(folder, settings.max_seq_length)
        data = read_task(
            task, options.glue_dir, encoder.tokenizer, settings.max_seq_length, max_train_rows=settings.max_train_rows
        )
        data = dataclasses.replace(data, test={})  # no predictions for the leaderboard
        for seed in options.seeds:
            outcome = finetune(encoder, data, settings, learning_rate=options.learning_rate, seed=seed, device=device)
            if outcome.diverged_at_step is not None:
                at = f"step {outcome.diverged_at_step}"
                raise ValueError(f"{task.name}, seed {seed}: diverged at {at}; no comparison")
            figures["bert_pld"].append(statistics.fmean(map(mean_score, outcome.scores.values())))
            figures["trainer"].append(by_trainer(encoder, data, options.learning_rate, seed, settings))
            ours, theirs = figures["bert_pld"][-1], figures["trainer"][-1]
            print(f"{task.name}, seed {seed}: {ours:.1f} bert_pld, {theirs:.1f} Trainer")
    dist.destroy_process_group()
    difference = statistics.fmean(figures["bert_pld"]) - statistics.fmean(figures["trainer"])
    noise = standard_error(figures)
    error = "one seed, so without a standard error" if noise is None else f"standard error of it {noise:.2f}"
    print(f"{task.name}: difference of the means {difference:+.2f}, {error}")
    if options.json is not None:
        result = {
            "task": task.name,
            "scores": figures,
            "difference": difference,
            "standard_error": noise,
            "learning_rate": options.learning_rate,
            "seeds": options.seeds,
            "settings": vars(settings),
            "weights": encoder.weights,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        write_json(options.json, result)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Make the script's argument parser."""
    what = "Fine-tune the same encoder with bert_pld and with transformers' Trainer."
    example = "python scripts/measure/compare_with_trainer.py --model exported/ --task CoLA --glue_dir glue/"
    parser = make_parser("scripts.measure.compare_with_trainer", what, example)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--glue_dir", required=True)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--max_train_rows", type=int)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    run_as_rank(main, build_parser())
