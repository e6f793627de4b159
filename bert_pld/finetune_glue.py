"""Fine-tune on GLUE: `deepspeed --module bert_pld.finetune_glue --task CoLA --glue_dir G --model M --output_dir D`."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bert_pld.cli import make_parser, run_as_rank
from bert_pld.cluster.signals import EXIT_PREEMPTED, Preemption
from bert_pld.glue.further_keys import further_keys
from bert_pld.glue.tasks import DIAGNOSTIC, TASKS, Task, find_tasks

if TYPE_CHECKING:
    from bert_pld.glue.encoder import Encoder
    from bert_pld.glue.finetuning import Settings
    from bert_pld.glue.stopping import SharedSignal

SUMMARY = "summary"


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = make_parser(
        "bert_pld.finetune_glue",
        "Fine-tune an encoder on tasks of GLUE, over learning rates and seeds; what is done is not done again.",
        "deepspeed --num_gpus 1 --module bert_pld.finetune_glue --task RTE CoLA --glue_dir glue/ --model runs/base"
        " --output_dir runs/glue --learning_rates 3e-5 5e-5 7e-5 --seeds 1 2 3",
    )
    names = ", ".join(TASKS)
    parser.add_argument("--task", nargs="+", metavar="TASK", help=f"all, or of {names}; AX is answered with MNLI")
    parser.add_argument("--glue_dir", help="the official download; or hub, or hub=DATASET, for the Hugging Face Hub's")
    parser.add_argument("--model", help="a run, a checkpoint, an export, or any encoder transformers knows")
    parser.add_argument("--output_dir", type=Path, help="results, answers for the leaderboard, summary")
    parser.add_argument("--from_scratch", action="store_true", help="the same encoder with fresh weights: the control")
    parser.add_argument("--learning_rates", nargs="+", type=float, help="tried in turn (default: the paper's a task)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default 1 2 3")
    parser.add_argument("--epochs", type=int, default=3, help="default 3")
    parser.add_argument("--batch_size", type=int, default=32, help="sequences a step, over all ranks (default 32)")
    parser.add_argument("--max_seq_length", type=int, default=128, help="tokens (default 128)")
    parser.add_argument("--dropout", type=float, help="(default: the model's own; one pretrained without has none)")
    parser.add_argument("--patience", type=int, help="stop after so many epochs without a better dev score")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--max_train_rows", type=int, help="train on the first so many rows only")
    parser.add_argument("--deepspeed_config", type=Path, metavar="FILE", help="further keys for DeepSpeed")
    parser.add_argument("--summarize", nargs="+", type=Path, metavar="DIR", help="only print a table of these folders")
    parser.add_argument("--json", type=Path, help="with --summarize: write the figures here")
    parser.add_argument("--plot", type=Path, help="with --summarize: draw them (.png, .svg, .pdf)")
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--deepspeed", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(options: argparse.Namespace) -> int:
    """Fine-tune what is asked for and not done yet, and print the table; EXIT_PREEMPTED after a signal."""
    if options.summarize:
        return compare(options)
    for name in ("json", "plot"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name}: is for --summarize; a fine-tuning's figures are in its --output_dir")
    for name in ("task", "glue_dir", "model", "output_dir"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name}: missing; must be given, except with --summarize")
    tasks = find_tasks(options.task)
    for rate in options.learning_rates or ():
        if not 0 < rate < 1:
            raise ValueError(f"--learning_rates {rate:g}: must be in (0, 1)")
    more = further_keys(options.deepspeed_config, options.precision)
    preemption = Preemption()
    from bert_pld.glue.stopping import StoppedError

    try:
        without = finetune_all(options, tasks, more, preemption)
    except StoppedError:
        say("stopped by a signal; finished fine-tunings are kept, and the same command goes on with the next")
        return EXIT_PREEMPTED
    if without:
        raise ValueError(
            f"{', '.join(without)}: at each learning rate a fine-tuning diverged, so none has a score with every seed;"
            " give lower --learning_rates"
        )
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print folders' figures side by side, and write or draw them where that is asked for."""
    from bert_pld.glue.differences import differences_table
    from bert_pld.glue.drawing import draw
    from bert_pld.glue.summary import summarize, table

    summaries: dict[str, dict[str, Any]] = {}
    for path in options.summarize:
        name = path.resolve().name
        if name in summaries:
            raise ValueError(f"--summarize {path}: another folder is named {name} too; a row is named after its folder")
        summaries[name] = summarize(path)
    if options.json is not None:
        options.json.write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        draw(summaries, options.plot)
    print(table(summaries), end="")
    if differences := differences_table(summaries):
        print("", differences, sep="\n", end="")
    return 0


def finetune_all(
    options: argparse.Namespace, tasks: list[Task], more: dict[str, Any] | None, preemption: Preemption
) -> list[str]:
    """Every task, learning rate and seed; return the tasks of which no rate has a score with every seed."""
    import torch.distributed as dist

    from bert_pld.glue.divergence import scored_rates
    from bert_pld.glue.encoder import load_encoder
    from bert_pld.glue.finetuning import Settings
    from bert_pld.glue.stopping import SharedSignal
    from bert_pld.training.run import join_process_group

    device = join_process_group()
    try:
        settings = Settings(
            epochs=options.epochs,
            batch_size=options.batch_size,
            max_seq_length=options.max_seq_length,
            dropout=options.dropout,
            patience=options.patience,
            precision=options.precision,
            max_train_rows=options.max_train_rows,
            deepspeed_config=more,
        )
        settings.check(dist.get_world_size(), device.type)
        signal = SharedSignal(preemption)
        with hugging_face_folder(options.model) as folder:
            encoder = load_encoder(folder, settings.max_seq_length, options.from_scratch, settings.dropout)
            results = {task.name: finetune_task(options, task, encoder, settings, device, signal) for task in tasks}
        try:
            if dist.get_rank() == 0:
                write_summary(options.output_dir)
        finally:
            dist.barrier()  # a rank that leaves with an error ends the others
        return [name for name, of_task in results.items() if not scored_rates(of_task)]
    finally:
        dist.destroy_process_group()


def finetune_task(
    options: argparse.Namespace, task: Task, encoder: Encoder, settings: Settings, device: Any, signal: SharedSignal
) -> list[dict[str, Any]]:
    """Every learning rate and seed of one task; return their results, those of earlier calls too."""
    import torch.distributed as dist

    from bert_pld.glue.finetuning import finetune
    from bert_pld.glue.reading import identify_data
    from bert_pld.glue.results import result_folder
    from bert_pld.glue.task_data import read_task

    rates = options.learning_rates or [task.paper_lr or 5e-5]
    conditions = {
        "weights": encoder.weights,
        "data": identify_data(task, options.glue_dir),
        "from_scratch": options.from_scratch,
    }
    wanted = [
        (rate, seed, result_folder(options.output_dir, task, options.model, rate, seed, settings, **conditions))
        for rate, seed in itertools.product(dict.fromkeys(rates), dict.fromkeys(options.seeds))
    ]
    found = [place.read() for _, _, place in wanted]
    results = [result for result in found if result is not None]
    say(f"{task.name}: {len(wanted)} fine-tunings, {len(results)} of them done")
    for result in results:
        warn_of_divergence(result)
    if len(results) == len(wanted):
        return results
    signal.check()
    data = read_task(task, DIAGNOSTIC if task.name == "MNLI" else None, options.glue_dir, encoder.tokenizer, settings)
    say(f"{task.name}: {data.describe()}")
    for rate, seed, place in (one for one, result in zip(wanted, found, strict=True) if result is None):
        signal.check()
        began = time.perf_counter()
        outcome = finetune(
            encoder.classifier(task, seed),
            task,
            data.train,
            data.dev,
            data.test,
            learning_rate=rate,
            seed=seed,
            settings=settings,
            pad_id=encoder.pad_id,
            device=device,
            check=signal.check,
        )
        results.append(place.describe(task, outcome, data.left_out, time.perf_counter() - began))
        if dist.get_rank() == 0:
            place.write(task, results[-1], outcome.predictions)
        if outcome.best_epoch is None:
            warn_of_divergence(results[-1])
        else:
            scores = ", ".join(
                f"{split} {metric} {value:.1f}"
                for split, values in outcome.scores.items()
                for metric, value in values.items()
            )
            say(f"{task.name}, lr {rate:g}, seed {seed}: {scores} (epoch {outcome.best_epoch} of {settings.epochs})")
        dist.barrier()
    return results


def write_summary(output_dir: Path) -> None:
    """Write and print the table of all that the folder holds; jobs that share it each do so."""
    from bert_pld.files import write_atomically
    from bert_pld.glue.summary import summarize, table

    summary = summarize(output_dir)
    text = table({output_dir.resolve().name: summary})
    write_atomically(output_dir / f"{SUMMARY}.json", json.dumps(summary, indent=2) + "\n")
    write_atomically(output_dir / f"{SUMMARY}.md", text)
    print(text, end="", flush=True)


def say(text: str, file: TextIO | None = None) -> None:
    """A line for whoever watches."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=file, flush=True)


def warn_of_divergence(result: dict[str, Any]) -> None:
    """A line on stderr about a result that has no score."""
    from bert_pld.glue.divergence import diverged, warning

    if diverged(result):
        say(warning(result), sys.stderr)


@contextmanager
def hugging_face_folder(model: str) -> Iterator[str]:
    """A model as transformers loads it: itself, or an export of a checkpoint of ours for as long as it is needed."""
    from bert_pld.export import export_checkpoint
    from bert_pld.glue.encoder import is_hugging_face_folder

    path = Path(model)
    if not path.is_dir() or is_hugging_face_folder(path):
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="bert_pld_") as folder:
        export_checkpoint(path, Path(folder) / "exported")
        yield str(Path(folder) / "exported")


if __name__ == "__main__":
    run_as_rank(main, build_parser())
