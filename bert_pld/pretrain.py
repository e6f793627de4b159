"""Pretrain: `deepspeed --module bert_pld.pretrain --deepspeed_config FILE.json --data_dir DIR --output_dir DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_pld.cli import add_initial_weights, make_parser, print_once, read_initial_weights, run_as_rank
from bert_pld.cluster.stopping import EXIT_PREEMPTED, Preemption
from bert_pld.config import ConfigError, load_config
from bert_pld.config.errors import explaining
from bert_pld.files import require_utf8


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser; launchers add `--deepspeed` and `--local_rank`."""
    parser = make_parser(
        "bert_pld.pretrain",
        "Pretrain a BERT with Progressive Layer Dropping. The same command resumes an interrupted run.",
        "deepspeed --num_gpus 8 --module bert_pld.pretrain --deepspeed_config configs/bert_base_pld_128.json"
        " --data_dir shards/ --output_dir runs/base --set training.max_steps=100000",
    )
    parser.add_argument("--deepspeed_config", required=True, type=Path, help="DeepSpeed JSON with our blocks")
    shards = "output of `data_prep build` (shards, or seq_<S> directories of them), or NVIDIA's shards"
    parser.add_argument("--data_dir", required=True, type=Path, help=shards)
    parser.add_argument("--output_dir", required=True, type=Path, help="the run's folder")
    parser.add_argument("--phase", metavar="NAME", help="a name in the JSON's `phases` (docs/training.md)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override any key")
    links = "follow symlinks out of --data_dir; only for directories from people you trust (docs/security.md)"
    followed = "data.follow_links=true"
    parser.add_argument("--follow_links", action="append_const", dest="set", const=followed, default=[], help=links)
    resume = "resume from the newest checkpoint of --output_dir, from none, or from PATH if it has none (default auto)"
    parser.add_argument("--resume", default="auto", metavar="auto|never|PATH", help=resume)
    add_initial_weights(parser)
    branch = "start a new run that goes on from this checkpoint with its optimizer and its step (docs/training.md)"
    parser.add_argument("--branch_from", type=Path, metavar="PATH", help=branch)
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--deepspeed", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(options: argparse.Namespace) -> int:
    """Train; return 0 after the last step, EXIT_PREEMPTED after a signal and its checkpoint.

    The process exits with EXIT_LOST_RANK if another rank died or hangs, and with 1 if it failed, after printing why.
    """
    require_utf8("--output_dir", options.output_dir)
    if options.branch_from is not None and (options.initialize_from or options.resume not in ("auto", "never")):
        other = "--initialize_from" if options.initialize_from else f"--resume {options.resume}"
        raise ConfigError(f"--branch_from {options.branch_from}: given beside {other}; give one of the two")
    preemption = Preemption()
    initial = read_initial_weights(options)
    follows = initial.follows if initial else None
    config = load_config(options.deepspeed_config, options.set, follows=follows, phase=options.phase)
    print_once("warning", config.warnings)
    print_once("note", config.notices)
    # These import torch and DeepSpeed, which takes seconds: signals are caught before, and mistakes in the JSON shown.
    from bert_pld.cluster.watchdog import Watchdog
    from bert_pld.data.read_failures import naming_damaged_shards
    from bert_pld.training.loop import train
    from bert_pld.training.memory import keep_freed_memory, naming_the_micro_batch
    from bert_pld.training.prepare import prepare_run

    keep_freed_memory()
    run, watchdog = None, Watchdog()
    try:
        with watchdog.reporting():
            with explaining(config.source, keep_value_errors=True):
                run = prepare_run(
                    config,
                    options.data_dir,
                    options.output_dir,
                    options.resume,
                    initial,
                    options.branch_from,
                    preemption,
                    watchdog,
                )
            splits = (run.training_rows, run.validation_rows)
            with naming_damaged_shards(splits, watchdog.end_with), naming_the_micro_batch(run.config):
                finished = train(run)
    finally:
        if run is not None:
            run.close()
    watchdog.stop()
    return 0 if finished else EXIT_PREEMPTED


if __name__ == "__main__":
    run_as_rank(main, build_parser())
