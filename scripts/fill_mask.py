"""Fill [MASK] with an exported model, which transformers loads by itself.

python scripts/fill_mask.py MODEL_DIR "A sentence with [MASK]." …
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bert_pld.cli import make_parser, run


def load(folder: Path) -> Any:
    """The pipeline of a model's folder; no name of the Hub.

    Raises:
        ValueError: no such folder, or no masked language model in it.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: has no config.json; must be a folder that `python -m bert_pld.export` wrote")
    from safetensors import SafetensorError
    from transformers import logging, pipeline

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return pipeline("fill-mask", str(folder))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        said = f"{error}".splitlines()[0] if f"{error}" else repr(error)
        raise ValueError(f"{folder}: transformers cannot load it ({said}); export the checkpoint again") from error


def check(sentence: str, fill: Any) -> None:
    """Raise ValueError for a sentence without exactly one mask, or longer than the model takes."""
    mask, longest = fill.tokenizer.mask_token, fill.model.config.max_position_embeddings
    if (masks := sentence.count(mask)) != 1:
        raise ValueError(f"{sentence[:60]!r}: holds {mask} {masks} times; must hold it once")
    if (tokens := len(fill.tokenizer(sentence)["input_ids"])) > longest:
        raise ValueError(f"{sentence[:60]!r}: {tokens} tokens; must be at most {longest}")


def main(options: argparse.Namespace) -> None:
    """Five guesses a sentence, with their probabilities."""
    fill = load(options.model)
    for sentence in options.sentences:
        check(sentence, fill)
    for sentence in options.sentences:
        guesses = ", ".join(f"{guess['token_str']} {guess['score']:.2f}" for guess in fill(sentence, top_k=5))
        print(f"{sentence}\n    {guesses}")


def build_parser() -> argparse.ArgumentParser:
    """A model and sentences."""
    parser = make_parser(
        "scripts.fill_mask",
        "Fill [MASK] with an exported model.",
        'python scripts/fill_mask.py exported/ "Return a list of [MASK] from the file."',
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="what `python -m bert_pld.export` wrote")
    parser.add_argument("sentences", nargs="+", metavar="SENTENCE", help="with one [MASK]")
    return parser


if __name__ == "__main__":
    run(main, build_parser())
