"""Fill [MASK] with an exported model; needs only transformers and torch.

python scripts/fill_mask.py MODEL_DIR "A sentence with [MASK]." …

[MASK] stands for the model's mask token, whatever its name is.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    """Make the argument parser."""
    parser = argparse.ArgumentParser(description="Fill [MASK] with an exported model.")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="folder written by `python -m bert_pld.export`")
    parser.add_argument("sentences", nargs="+", metavar="SENTENCE", help="sentence with one [MASK]")
    return parser


def main() -> None:
    """Print the five most probable tokens for each sentence."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for terminals without UTF-8
    options = build_parser().parse_args()
    if not (options.model / "config.json").is_file():
        raise SystemExit(f"error: {options.model}: has no config.json; must be a folder written by bert_pld.export")
    for sentence in options.sentences:
        if sentence.count("[MASK]") != 1:
            raise SystemExit(
                f"error: {sentence!r}: contains [MASK] {sentence.count('[MASK]')} times; must contain it once"
            )

    from transformers import logging, pipeline

    logging.set_verbosity_error()
    fill = pipeline("fill-mask", str(options.model))
    for sentence in options.sentences:
        masked = sentence.replace("[MASK]", fill.tokenizer.mask_token)
        guesses = ", ".join(f"{guess['token_str']} {guess['score']:.2f}" for guess in fill(masked, top_k=5))
        print(f"{sentence}\n    {guesses}")


if __name__ == "__main__":
    main()
