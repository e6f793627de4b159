"""Measure an exported model at masked tokens of held-out text in each language, beside the frequencies of tokens.

    python scripts/measure/measure_filled_masks.py exported/ --text text/train --held_out text/held_out

Both folders have a file LANGUAGE.txt for each language, with an empty line between two documents. 15 % of the tokens of
the held-out text are masked. The model guesses them; so do the frequencies of the language's tokens in the other text,
whose guess is always the most frequent one. The model is read with transformers alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bert_pld.cli import check_json_option, make_parser, require_positive, run
from bert_pld.files import write_atomically

MASKED, BATCH, TOP = 0.15, 64, 3
SENTENCES = {
    "zh": "他[MASK]一个好学生。",
    "ja": "これは本[MASK]ある。",
    "ko": "그는 학교에 가고 [MASK].",
    "th": "เขา[MASK]ไปโรงเรียน",
    "km": "គាត់[MASK]ទៅសាលារៀន។",
    "hi": "यह एक किताब [MASK]।",
    "ar": "ذهب الولد [MASK] المدرسة.",
    "he": "הוא הלך [MASK] בית הספר.",
    "tr": "Bu çok güzel [MASK] gün.",
    "de": "Der Mann ging [MASK] die Schule.",
}
"""A sentence in each language, for which the three best guesses are shown."""


def documents(path: Path) -> list[str]:
    """Return the documents of a file."""
    return [part.strip() for part in path.read_text(encoding="utf-8").split("\n\n") if part.strip()]


def ids_of(tokenizer: Any, path: Path) -> NDArray[np.int64]:
    """Return the tokens of all documents of a file, one after another, without special tokens."""
    encoded = tokenizer(documents(path), add_special_tokens=False, verbose=False)["input_ids"]
    return np.array([token for ids in encoded for token in ids], np.int64)


def rows_of(tokenizer: Any, path: Path, seq_length: int) -> list[list[int]]:
    """Return the tokens of the documents in rows of at most `seq_length` tokens with [CLS] and [SEP]."""
    rows, width = [], seq_length - 2
    for ids in tokenizer(documents(path), add_special_tokens=False, verbose=False)["input_ids"]:
        parts = (ids[first : first + width] for first in range(0, len(ids), width))
        rows += [[tokenizer.cls_token_id, *part, tokenizer.sep_token_id] for part in parts]
    return rows


@torch.no_grad()
def at_masks(
    model: Any, tokenizer: Any, rows: list[list[int]], seq_length: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the masked tokens, the model's guesses of them, and the losses in nats."""
    draw = np.random.default_rng(seed)
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    found = []
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        ids = np.full((len(batch), seq_length), tokenizer.pad_token_id)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
        mask = (draw.random(ids.shape) < MASKED) & ~np.isin(ids, special)
        given = torch.from_numpy(np.where(mask, tokenizer.mask_token_id, ids))
        logits = model(given, attention_mask=given != tokenizer.pad_token_id).logits[torch.from_numpy(mask)]
        labels = torch.from_numpy(ids[mask])
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        found.append((ids[mask], logits.argmax(-1).numpy(), losses.double().numpy()))
    tokens, guesses, losses = (np.concatenate(column) for column in zip(*found, strict=True))
    return tokens, guesses, losses


def measure(model: Any, tokenizer: Any, language: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one language."""
    train = ids_of(tokenizer, options.text / f"{language}.txt")
    counts = np.bincount(train, minlength=len(tokenizer))
    if tokenizer.unk_token_id is not None:
        counts[tokenizer.unk_token_id] = 0
    shares = (counts + 1) / (counts.sum() + len(counts))
    rows = rows_of(tokenizer, options.held_out / f"{language}.txt", options.seq_length)[: options.rows]
    tokens, guesses, losses = at_masks(model, tokenizer, rows, options.seq_length, seed=1)
    return {
        "language": language,
        "tokens": len(train),
        "masked": len(tokens),
        "accuracy": float((guesses == tokens).mean()),
        "most_frequent_accuracy": float((tokens == counts.argmax()).mean()),
        "loss": float(losses.mean()),
        "frequencies_loss": float(-np.log(shares[tokens]).mean()),
        **filled(model, tokenizer, SENTENCES.get(language)),
    }


def filled(model: Any, tokenizer: Any, sentence: str | None) -> dict[str, Any]:
    """Return a sentence with its best guesses, as the pipeline `fill-mask` gives them."""
    from transformers import pipeline

    if sentence is None:
        return {}
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)
    guesses = fill(sentence.replace("[MASK]", tokenizer.mask_token), top_k=TOP)
    return {"sentence": sentence, "guesses": [[one["token_str"].strip(), round(one["score"], 3)] for one in guesses]}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    example = "python scripts/measure/measure_filled_masks.py exported/ --text text/train --held_out text/held_out"
    what = "Measure an exported model at masked tokens of held-out text in each language."
    parser = make_parser("scripts.measure.measure_filled_masks", what, example)
    parser.add_argument("model", type=Path, help="folder written by `python -m bert_pld.export`")
    parser.add_argument("--text", type=Path, required=True, help="folder of LANGUAGE.txt that the model was trained on")
    parser.add_argument(
        "--held_out", type=Path, required=True, help="folder of LANGUAGE.txt that it was not trained on"
    )
    parser.add_argument("--seq_length", type=int, default=64, help="tokens of a row (default 64)")
    parser.add_argument("--rows", type=int, default=300, help="rows of held-out text for a language (default 300)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def main(options: argparse.Namespace) -> int:
    """Measure all languages and print a line for each."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer, logging

    check_json_option(options.json)
    require_positive(options, "rows")
    logging.set_verbosity_error()
    languages = sorted(path.stem for path in options.held_out.glob("*.txt"))
    if not languages:
        raise ValueError(f"--held_out {options.held_out}: has no LANGUAGE.txt")
    if missing := [name for name in languages if not (options.text / f"{name}.txt").is_file()]:
        raise ValueError(f"--held_out {options.held_out}: {missing[0]}.txt is not in {options.text}")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForMaskedLM.from_pretrained(options.model).eval()
    results = []
    for language in languages:
        results.append(measure(model, tokenizer, language, options))
        one = results[-1]
        print(
            f"{language}  accuracy {one['accuracy']:.3f} (most frequent token {one['most_frequent_accuracy']:.3f})"
            f"  loss {one['loss']:.2f} (frequencies {one['frequencies_loss']:.2f})  {one.get('guesses', '')}"
        )
    if options.json:
        write_atomically(options.json, json.dumps({"languages": results}, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    run(main, build_parser())
