"""Fill [MASK] with an exported model; needs transformers and torch alone.

python scripts/fill_mask.py MODEL_DIR "A sentence with [MASK]." …
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Five guesses a sentence, with their probabilities."""
    parser = argparse.ArgumentParser(description="Fill [MASK] with an exported model.")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="what `python -m bert_pld.export` wrote")
    parser.add_argument("sentences", nargs="+", metavar="SENTENCE", help="with one [MASK]")
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        raise SystemExit(f"error: {options.model}: has no config.json; must be a folder that bert_pld.export wrote")
    for sentence in options.sentences:
        if sentence.count("[MASK]") != 1:
            raise SystemExit(f"error: {sentence!r}: holds [MASK] {sentence.count('[MASK]')} times; must hold it once")

    from transformers import logging, pipeline

    logging.set_verbosity_error()
    fill = pipeline("fill-mask", str(options.model))
    for sentence in options.sentences:
        guesses = ", ".join(f"{guess['token_str']} {guess['score']:.2f}" for guess in fill(sentence, top_k=5))
        print(f"{sentence}\n    {guesses}")


if __name__ == "__main__":
    main()
