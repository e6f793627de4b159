"""Measure training on rows of several documents that do not attend to each other, against rows that are one sequence.

    python scripts/measure/measure_packing.py --seq_length 512 --mean_length 300 100

A step is forward and backward of 4,096 made-up tokens in full rows, in fp32 on a CPU. The figure is tokens for each
second of processor time, the best of a few turns; all rows have the same tokens and targets.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bert_pld.cli import make_parser, require_positive, run
from bert_pld.config import load_config
from bert_pld.model import make_model

TOKENS, VOCABULARY, SHORTEST = 4096, 8192, 8


def made_up_lengths(rows: int, seq_length: int, mean: float, draw: np.random.Generator) -> NDArray[np.int64]:
    """Return the lengths of documents that fill the rows, exponentially distributed; rows cut the long ones."""
    lengths = []
    for _ in range(rows):
        left = seq_length
        while left:
            length = min(left, max(SHORTEST, round(draw.exponential(mean))))
            lengths.append(left if left - length < SHORTEST else length)
            left -= lengths[-1]
    return np.array(lengths, np.int64)


def tokens_per_second(options: argparse.Namespace) -> dict[str, float]:
    """Return the figure of whole rows and of each mean length."""
    torch.manual_seed(0)
    rows, draw = TOKENS // options.seq_length, np.random.default_rng(0)
    sizes = {"hidden_size": options.hidden_size, "num_layers": 4, "num_attention_heads": options.hidden_size // 64}
    inner = 4 * options.hidden_size if options.architecture == "bert" else 3 * options.hidden_size // 2
    model_block = {"architecture": options.architecture, "preset": None, **sizes, "intermediate_size": inner}
    model_block |= {"vocab_size": VOCABULARY, "next_sentence_prediction": False}
    model = make_model(load_config({"model": model_block, "data": {"seq_length": options.seq_length}}).model)
    ids = torch.randint(5, VOCABULARY, (rows, options.seq_length))
    masked = torch.arange(0, ids.numel(), 7)
    batch: dict[str, Any] = {
        "input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": None, "masked_positions": masked,
        "masked_labels": ids.flatten()[masked], "sequence_lengths": np.full(rows, options.seq_length),
    }  # fmt: skip
    kinds: dict[str, NDArray[np.int64] | None] = {"whole rows": None}
    for mean in options.mean_length:
        lengths = made_up_lengths(rows, options.seq_length, mean, draw)
        # The asked mean is a part of the key: rows may cut the documents of two means to the same length.
        kinds[f"documents of {lengths.mean():.0f} tokens, mean {mean:g}"] = lengths
    best = dict.fromkeys(kinds, float("inf"))
    for _ in range(options.turns):
        for name, documents in kinds.items():
            began = time.process_time()
            model.zero_grad()
            model(**batch, document_lengths=documents)["loss"].backward()
            best[name] = min(best[name], time.process_time() - began)
    return {name: ids.numel() / seconds for name, seconds in best.items()}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    what = "Measure training on rows of several documents against rows that are one sequence."
    parser = make_parser("scripts.measure.measure_packing", what, "python scripts/measure/measure_packing.py")
    parser.add_argument("--architecture", choices=["bert", "modernbert"], default="bert", help="default bert")
    parser.add_argument("--seq_length", type=int, default=512, help="tokens of a row (default 512)")
    parser.add_argument("--hidden_size", type=int, default=256, help="width; heads have 64 (default 256)")
    means = "mean lengths of the documents before rows cut them (default 300 100)"
    parser.add_argument("--mean_length", type=float, nargs="+", default=[300.0, 100.0], help=means)
    parser.add_argument("--turns", type=int, default=3, help="turns over all kinds of rows (default 3)")
    return parser


def main(options: argparse.Namespace) -> int:
    """Print a line for each kind of rows."""
    require_positive(options, "turns", "seq_length")
    if options.seq_length > TOKENS:
        raise ValueError(f"--seq_length {options.seq_length}: must be at most {TOKENS}, the tokens of a step")
    if wrong := [mean for mean in options.mean_length if not 0 < mean < math.inf]:
        raise ValueError(f"--mean_length {wrong[0]:g}: must be a number of tokens above 0")
    figures = tokens_per_second(options)
    for name, figure in figures.items():
        print(f"{name:<36} {figure:8,.0f} tokens a processor second, {figure / figures['whole rows']:.2f} × whole rows")
    return 0


if __name__ == "__main__":
    run(main, build_parser())
