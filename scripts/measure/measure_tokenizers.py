"""Measure what tokenizing whole documents costs beside the bare library, with byte-level BPE and Unigram.

    python scripts/measure/measure_tokenizers.py --source 'books=novels/*.txt' --json docs/results/tokenizers_cpu.json

Each tokenizer is trained on the first half of the documents and runs on the second, on one core, in turns: the
library's `encode_batch` and `encode_batch_fast` on whole texts, and the build's step, which also cuts documents into
sentences. Figures are tokens per second of processor time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bert_pld.cli import check_json_option, make_parser, require_positive, run
from bert_pld.data.fast_tokenizer import FastTokenizer
from bert_pld.files import write_json


def main(options: argparse.Namespace) -> None:
    """Print a line for each algorithm."""
    check_json_option(options.json)
    require_positive(options, "rounds", "vocab_size")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from data_prep.recipe import Normalise, ReadPieces, SplitSentences
    from data_prep.rows.trained_tokenizer import train_tokenizer
    from data_prep.sources import Source

    pieces = [piece for source in options.source for piece in Source.parse(source).pieces()]
    steps = SplitSentences("en").run(Normalise().run(ReadPieces(pieces).run(None)))
    documents = [document.metadata["sentences"] for document in steps]
    half = len(documents) // 2
    if not half:
        raise ValueError(f"--source {', '.join(options.source)}: one document; at least two are needed")
    train = ["".join(sentences) for sentences in documents[:half]]
    result: dict[str, Any] = {"sources": options.source, "rounds": options.rounds, "entries": options.vocab_size}
    for algorithm in ("bpe", "unigram"):
        trained = train_tokenizer(lambda: [train], options.vocab_size, algorithm)
        tokens, medians = measure(trained, documents[half:], options.rounds)
        result[algorithm] = {"tokens": tokens, "tokens_per_s": medians}
        rates = ", ".join(f"{name} {rate:,}" for name, rate in medians.items())
        share = medians["build"] / medians["encode_batch"]
        print(f"{algorithm}: {tokens:,} tokens; tokens/s: {rates}; build {share:.2f} of encode_batch")
    if options.json is not None:
        write_json(options.json, result)


def measure(trained: FastTokenizer, documents: list[list[str]], rounds: int) -> tuple[int, dict[str, int]]:
    """Return the number of tokens, and each contender's median of tokens per second of processor time."""
    import numpy as np

    from data_prep.rows.tokens import encode_whole_documents

    tokenizer, nothing = trained.tokenizer(), np.zeros(len(trained.entries), np.bool_)
    texts = ["".join(sentences) for sentences in documents]

    def bare(encode: Callable[..., Any]) -> int:
        return sum(len(encoding.ids) for encoding in encode(texts, add_special_tokens=False))

    contenders: dict[str, Callable[[], int]] = {
        "encode_batch": lambda: bare(tokenizer.encode_batch),
        "encode_batch_fast": lambda: bare(tokenizer.encode_batch_fast),
        "build": lambda: len(encode_whole_documents(tokenizer, documents, nothing).tokens),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, encode in contenders.items():
            began = time.process_time()
            tokens = encode()
            rates[name].append(tokens / (time.process_time() - began))
    return tokens, {name: round(statistics.median(found)) for name, found in rates.items()}


def build_parser() -> argparse.ArgumentParser:
    """Make the argument parser."""
    parser = make_parser(
        "scripts.measure.measure_tokenizers",
        "Measure tokenizing whole documents beside the bare library.",
        "python scripts/measure/measure_tokenizers.py --source 'books=novels/*.txt'",
    )
    parser.add_argument("--source", action="append", required=True, metavar="KIND=WHERE", help="as in data_prep build")
    parser.add_argument("--vocab_size", type=int, default=8192, help="entries of each tokenizer (default 8192)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    return parser


if __name__ == "__main__":
    run(main, build_parser())
