"""Pretrain: `deepspeed --module bert_pld.pretrain --deepspeed_config FILE.json --data_dir DIR --output_dir DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_pld.cli import make_parser, run_as_rank
from bert_pld.cluster.signals import EXIT_PREEMPTED, Preemption
from bert_pld.config import load_config


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments; `--deepspeed` and `--local_rank` are what launchers add."""
    parser = make_parser(
        "bert_pld.pretrain",
        "Pretrain a BERT with Progressive Layer Dropping. Resumes by itself: run the same command again.",
        "deepspeed --num_gpus 8 --module bert_pld.pretrain --deepspeed_config configs/bert_base_pld_128.json"
        " --data_dir shards/ --output_dir runs/base --set training.max_steps=100000",
    )
    parser.add_argument("--deepspeed_config", required=True, type=Path, help="a DeepSpeed JSON with our blocks")
    parser.add_argument(
        "--data_dir",
        required=True,
        type=Path,
        help="what `data_prep build` made: shards or seq_<S>; or NVIDIA's shards",
    )
    parser.add_argument("--output_dir", required=True, type=Path, help="the run's folder")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override any key")
    parser.add_argument("--resume", default="auto", metavar="auto|never|PATH", help="what to go on from (auto)")
    parser.add_argument("--initialize_from", type=Path, metavar="PATH", help="start a new run from these weights")
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--deepspeed", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(options: argparse.Namespace) -> int:
    """Train; exit 0 at the last step, EXIT_PREEMPTED after a signal and its checkpoint.

    Raises:
        SystemExit: EXIT_LOST_RANK where another rank died or hangs, 1 where it failed; that has been said.
    """
    preemption = Preemption()
    config = load_config(options.deepspeed_config, options.set)
    from bert_pld.cluster.watchdog import end_with, finish, reporting
    from bert_pld.data.read_failures import naming_damaged_shards
    from bert_pld.training.loop import train
    from bert_pld.training.run import prepare_run

    training = None
    try:
        with reporting():
            training = prepare_run(
                config, options.data_dir, options.output_dir, options.resume, options.initialize_from, preemption
            )
            with naming_damaged_shards((training.training_rows, training.validation_rows), end_with):
                finished = train(training)
    finally:
        if training is not None:
            training.close()
    finish()
    return 0 if finished else EXIT_PREEMPTED


if __name__ == "__main__":
    run_as_rank(main, build_parser())
