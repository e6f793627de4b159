"""Fine-tune on GLUE: `deepspeed --module bert_pld.finetune_glue --task CoLA --glue_dir G --model M --output_dir D`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bert_pld.cli import check_figure_file, check_output_file, make_parser, print_once, run_as_rank
from bert_pld.cluster.stopping import EXIT_PREEMPTED, Preemption
from bert_pld.config import OUR_BLOCKS, ConfigError, read_json
from bert_pld.config.auto import resolve_auto
from bert_pld.config.deepspeed import check_deepspeed
from bert_pld.files import require_utf8, write_json
from bert_pld.glue.tasks import TASKS, find_tasks

HIGHEST_ZERO_STAGE = 2
_BATCH, _PRECISION = "use --batch_size, the sequences per step over all ranks", "use --precision"
_REFUSED = {
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), _BATCH),
    "elasticity": _BATCH,
    "gradient_clipping": "gradients are always clipped at 1",
    **dict.fromkeys(("fp16", "bf16", "bfloat16", "amp", "torch_autocast"), _PRECISION),
    "optimizer": "it is always AdamW; use --learning_rates",
    "scheduler": "it is always a linear warm-up and decay; use --learning_rates",
    **dict.fromkeys(OUR_BLOCKS, "it is for pretraining only"),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = make_parser(
        "bert_pld.finetune_glue",
        "Fine-tune an encoder on tasks of GLUE, over learning rates and seeds; finished fine-tunings are skipped.",
        "deepspeed --num_gpus 1 --module bert_pld.finetune_glue --task RTE CoLA --glue_dir glue/ --model runs/base"
        " --output_dir runs/glue --learning_rates 3e-5 5e-5 7e-5 --seeds 1 2 3",
    )
    names = ", ".join(TASKS)
    parser.add_argument("--task", nargs="+", metavar="TASK", help=f"all, or some of {names}; AX is predicted with MNLI")
    parser.add_argument("--glue_dir", help="folder of the official download; or hub, or hub=DATASET on the Hub")
    add_training_options(parser, "the paper's per task")
    parser.add_argument("--summarize", nargs="+", type=Path, metavar="DIR", help="only print a table of these folders")
    parser.add_argument("--json", type=Path, help="with --summarize: write the figures to this file")
    parser.add_argument("--plot", type=Path, help="with --summarize: plot them to this file (.png, .svg, .pdf)")
    return parser


def add_training_options(parser: argparse.ArgumentParser, rates: str) -> None:
    """Add the options of every fine-tuning command; `rates` says which learning rates are the default."""
    parser.add_argument("--model", help="a run, a checkpoint, an exported model, or any encoder transformers loads")
    parser.add_argument("--output_dir", type=Path, help="folder for results, predictions and the summary")
    parser.add_argument("--from_scratch", action="store_true", help="random weights of the same shape: the baseline")
    parser.add_argument("--learning_rates", nargs="+", type=float, help=f"rates to try (default: {rates})")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default 1 2 3")
    parser.add_argument("--epochs", type=int, default=3, help="default 3")
    parser.add_argument("--batch_size", type=int, default=32, help="sequences per step, over all ranks (default 32)")
    parser.add_argument("--max_seq_length", type=int, default=128, help="tokens (default 128)")
    parser.add_argument("--dropout", type=float, help="dropout probability (default: the model's configuration)")
    parser.add_argument("--patience", type=int, help="stop after this many epochs without a better dev score")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="default fp32")
    parser.add_argument("--max_train_rows", type=int, help="train on this many rows only, the first of the file")
    parser.add_argument("--deepspeed_config", type=Path, metavar="FILE", help="JSON with additional DeepSpeed keys")
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--deepspeed", action="store_true", help=argparse.SUPPRESS)


def main(options: argparse.Namespace) -> int:
    """Run the fine-tunings that are not finished and print the table; return EXIT_PREEMPTED after a stop signal."""
    if options.summarize:
        return compare(options)
    for name in ("json", "plot"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name}: only with --summarize; a fine-tuning writes its figures to --output_dir")
    for name in ("task", "glue_dir", "model", "output_dir"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name}: required, except with --summarize")
    require_utf8("--output_dir", options.output_dir)
    require_utf8("--model", Path(options.model))
    tasks = find_tasks(options.task)

    def source(encoder: Any, settings: Any) -> Any:
        from bert_pld.glue.data import GlueSource

        return GlueSource(options.glue_dir, encoder.tokenizer, settings.max_seq_length, settings.max_train_rows)

    def report(_: Any) -> str:
        from bert_pld.glue.summary import write_summary

        return write_summary(options.output_dir)

    return finetune(options, tasks, source, report)


def finetune(
    options: argparse.Namespace,
    tasks: Sequence[Any],
    make_source: Callable[[Any, Any], Any],
    report: Callable[[dict[str, list[dict[str, Any]]]], str],
) -> int:
    """Run the fine-tunings of all tasks that are not finished, print `report` of their results; return the exit code.

    `make_source` returns the tasks' `DataSource` for an encoder and the settings.
    """
    check_rates_and_seeds(options.learning_rates or (), options.seeds)
    overrides = read_deepspeed_overrides(options.deepspeed_config, options.precision)
    preemption = Preemption()  # before the imports that take seconds
    from bert_pld.cluster.one_rank import naming_this_rank_if_alone
    from bert_pld.finetuning.loop import StoppedError
    from bert_pld.finetuning.sweep import print_line

    try:
        with naming_this_rank_if_alone(lambda: preemption.stop_requested):
            without_score = _finetune_all(options, tasks, overrides, preemption, make_source, report)
    except StoppedError:
        print_line("stopped by a signal; the work is saved, run the same command again to continue")
        return EXIT_PREEMPTED
    if without_score:
        raise ValueError(
            f"{', '.join(without_score)}: a fine-tuning diverged at every learning rate, so no rate has a score with"
            " every seed; give lower --learning_rates"
        )
    return 0


def check_rates_and_seeds(rates: Sequence[float], seeds: Sequence[int]) -> None:
    """Raise a ValueError that names a learning rate or a seed that is out of range.

    So are two rates that agree to six digits, because the results of both would be in one folder.
    """
    names: dict[str, float] = {}
    for rate in rates:
        if not 0 < rate < 1:
            raise ValueError(f"--learning_rates {rate:g}: must be in (0, 1)")
        if names.setdefault(f"{rate:g}", rate) != rate:
            raise ValueError(f"--learning_rates {names[f'{rate:g}']} {rate}: must differ within six digits")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"--seeds {seed}: must be in [0, 2^32)")


def compare(options: argparse.Namespace) -> int:
    """Print the scores of several folders side by side; write or plot the figures on request."""
    from bert_pld.glue.summary import differences_table, draw, summarize, table, unequal_conditions

    check_output_file("--json", options.json, "nothing was summarized")
    check_figure_file("--plot", options.plot, "nothing was summarized")
    summaries: dict[str, dict[str, Any]] = {}
    for path in options.summarize:
        name = path.resolve().name
        if name in summaries:
            raise ValueError(
                f"--summarize {path}: two folders are named {name}; a name labels a row, so they must differ"
            )
        summaries[name] = summarize(path)
    if options.json is not None:
        write_json(options.json, summaries)
    if options.plot is not None:
        draw(summaries, options.plot)
    print(table(summaries), end="")
    if differences := differences_table(summaries):
        print("", differences, sep="\n", end="")
    for line in unequal_conditions(summaries):
        print(f"warning: {line}", file=sys.stderr)
    return 0


def _finetune_all(
    options: argparse.Namespace,
    tasks: Sequence[Any],
    overrides: dict[str, Any] | None,
    preemption: Preemption,
    make_source: Callable[[Any, Any], Any],
    report: Callable[[dict[str, list[dict[str, Any]]]], str],
) -> list[str]:
    """Fine-tune on all tasks and report; return the tasks of which no rate has a score with every seed."""
    import torch.distributed as dist

    from bert_pld.cluster.one_rank import naming_this_rank
    from bert_pld.cluster.process_group import join_process_group
    from bert_pld.finetuning.encoder import load_encoder
    from bert_pld.finetuning.loop import SharedSignal
    from bert_pld.finetuning.settings import Settings
    from bert_pld.finetuning.sweep import Sweep, scored_rates

    with naming_this_rank():
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
            deepspeed_config=overrides,
        )
        settings.check(dist.get_world_size(), device.type)
        with hugging_face_folder(options.model) as folder:
            encoder = load_encoder(folder, settings.max_seq_length, options.from_scratch, settings.dropout)
            sweep = Sweep(
                encoder=encoder,
                model=options.model,
                source=make_source(encoder, settings),
                output_dir=options.output_dir,
                learning_rates=options.learning_rates,
                seeds=options.seeds,
                settings=settings,
                device=device,
                signal=SharedSignal(preemption),
            )
            results = {task.name: sweep.run_task(task) for task in tasks}
        try:
            if dist.get_rank() == 0:
                print(report(results), end="", flush=True)
        finally:
            dist.barrier()  # a rank that exits with an error would make the launcher end the others
        return [name for name, of_task in results.items() if not scored_rates(of_task)]
    finally:
        dist.destroy_process_group()


@contextmanager
def hugging_face_folder(model: str) -> Iterator[str]:
    """Yield a name that transformers loads: the model itself, or a temporary export of a bert_pld checkpoint."""
    from bert_pld.export import export_checkpoint
    from bert_pld.finetuning.encoder import is_hugging_face_folder

    path = Path(model)
    if not path.is_dir() or is_hugging_face_folder(path):
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="bert_pld_") as folder:
        export_checkpoint(path, Path(folder) / "exported")
        yield str(Path(folder) / "exported")


def read_deepspeed_overrides(path: Path | None, precision: str) -> dict[str, Any] | None:
    """Read and validate the overrides; None without a file.

    The file may have the block of `--precision` with settings such as `fp16.initial_scale_power`, but not its
    `enabled`. A ConfigError is raised for a key that an option sets or an unsupported ZeRO stage.
    """
    if path is None:
        return None
    where = f"--deepspeed_config {path}"
    values = {key: value for key, value in read_json(path).items() if value is not None}
    block = values.get(precision)
    has_settings_only = isinstance(block, dict) and "enabled" not in block
    refused = [key for key in values if key in _REFUSED and not (key == precision and has_settings_only)]
    if refused:
        others = f"; nor are {', '.join(refused[1:])}" if refused[1:] else ""
        raise ConfigError(
            f"{where}: {refused[0]}: not allowed in fine-tuning, {_REFUSED[refused[0]]}{others};"
            f" other DeepSpeed keys are allowed, such as zero_optimization up to stage {HIGHEST_ZERO_STAGE}"
        )
    values, warnings = check_deepspeed(values, where)
    print_once("warning", warnings)
    values, _ = resolve_auto(values, where, max_steps=None, hidden_size=None)
    stage = values.get("zero_optimization", {}).get("stage", 0)
    if stage > HIGHEST_ZERO_STAGE:
        raise ConfigError(f"{where}: zero_optimization.stage: {stage}; must be 0, 1 or {HIGHEST_ZERO_STAGE}")
    if values.get("zero_optimization", {}).get("offload_optimizer", {}).get("device") == "nvme":
        raise ConfigError(f"{where}: zero_optimization.offload_optimizer.device: nvme; must be none or cpu")
    return values


if __name__ == "__main__":
    run_as_rank(main, build_parser())
