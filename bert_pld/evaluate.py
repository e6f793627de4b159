"""Evaluate a checkpoint on held-out data: MLM loss and accuracy, and NSP accuracy, with all blocks."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from bert_pld.cli import check_output_file, make_parser, run

if TYPE_CHECKING:
    from bert_pld.config import RunConfig
    from bert_pld.data.rows import ShardedRows


def build_parser() -> argparse.ArgumentParser:
    """Make the argument parser of `python -m bert_pld.evaluate`."""
    parser = make_parser(
        "bert_pld.evaluate",
        "Evaluate a checkpoint: MLM loss (nats per masked token), MLM accuracy and NSP accuracy on held-out data.",
        "python -m bert_pld.evaluate --checkpoint runs/base --data_dir shards/",
    )
    parser.add_argument("--checkpoint", required=True, type=Path, help="run folder, or one step_N folder")
    parser.add_argument("--data_dir", required=True, type=Path, help="native or NVIDIA shards, or a folder of seq_<S>")
    links = "follow symlinks out of --data_dir; only for directories from people you trust (docs/security.md)"
    parser.add_argument("--follow_links", action="store_true", help=links)
    splits = ["validation", "train"]
    parser.add_argument("--split", default=splits[0], choices=splits, help="which rows (default validation)")
    share = "share of the tokens to mask; losses at different shares do not compare (default: that of the run)"
    parser.add_argument("--mask_probability", type=float, metavar="P", help=share)
    parser.add_argument("--batch_size", type=int, default=64, help="sequences per forward (default 64)")
    parser.add_argument("--max_rows", type=int, help="largest number of rows to evaluate (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    return parser


def open_for_checkpoint(
    checkpoint: Path, config: RunConfig, data_dir: Path, split: str, follow_links: bool = False
) -> ShardedRows:
    """Open a split of a data directory for a checkpoint's model; a ValueError if the two do not fit.

    Shards in NVIDIA's format without a vocabulary get the checkpoint's.
    """
    from bert_pld.checkpoint.format import check_same_vocabulary
    from bert_pld.data.loader import check_matches_model
    from bert_pld.data.nvidia_rows import open_rows
    from bert_pld.data.rows import resolve_data_dir
    from bert_pld.files import VOCABULARY

    data_dir = resolve_data_dir(data_dir, config.data.seq_length, follow_links)
    own_vocabulary = (data_dir / VOCABULARY).is_file()
    rows = open_rows(data_dir, split, None if own_vocabulary else checkpoint / VOCABULARY, follow_links)
    check_same_vocabulary(checkpoint, rows)
    check_matches_model(rows, config.model, seq_length=rows.attributes.seq_length)
    return rows


def main(options: argparse.Namespace) -> None:
    """Print one figure per line."""
    import torch

    from bert_pld.checkpoint.format import load_model, resolve_checkpoint
    from bert_pld.data.loader import evaluation_batches
    from bert_pld.data.order import BatchShare
    from bert_pld.files import write_json
    from bert_pld.training.loop import evaluate

    check_output_file("--json", options.json, "nothing was evaluated")
    checkpoint = resolve_checkpoint(options.checkpoint)
    model, config = load_model(checkpoint)
    rows = open_for_checkpoint(checkpoint, config, options.data_dir, options.split, options.follow_links)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    share = BatchShare(micro_batch_size=options.batch_size)
    data = config.data
    if options.mask_probability is not None:
        if not 0.0 < options.mask_probability < 1.0:
            raise ValueError(f"--mask_probability {options.mask_probability}: must be in (0, 1)")
        # Masks that shards contain have another share.
        data = dataclasses.replace(data, masking="dynamic", eval_mask_probability=options.mask_probability)
    batches = evaluation_batches(rows, data, share, seed=config.training.seed, max_rows=options.max_rows)
    figures = {"checkpoint": str(checkpoint), **evaluate(model.to(device), batches, device)}
    for name, value in figures.items():
        print(f"{name}: {value if isinstance(value, str) else format(value, '.5f')}")
    if options.json is not None:
        write_json(options.json, figures)


if __name__ == "__main__":
    run(main, build_parser())
