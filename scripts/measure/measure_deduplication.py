"""Measure deduplication: the share of planted copies and edited copies that are found among documents of a source.

    python scripts/measure/measure_deduplication.py --source wikiextractor=extracted/ --json found.json

The source's own duplicates are removed first, so that every other document that is removed later is an error.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from bert_pld.cli import check_json_option, make_parser, run
from bert_pld.files import write_atomically
from data_prep.dedup.duplicates import Comparisons, Duplicates, cluster_near, find_exact, find_near, join_exact
from data_prep.sources import KINDS, Source
from data_prep.spool import write_spool
from data_prep.text.clean import clean_text, drop_reason

PLANTED = 0.1
FEWEST = round(1 / PLANTED)
"""Smallest number of documents of which one can be planted."""


def edited(draw: random.Random, text: str, rate: float, words: list[str]) -> str:
    """Change a share of `rate` of the words: remove, replace, or insert a word after it, a third each."""
    lines = []
    for line in text.split("\n"):
        kept = []
        for word in line.split():
            kind = draw.random() / rate
            kept += [word] if kind >= 1 else [[], [draw.choice(words)], [word, draw.choice(words)]][int(3 * kind)]
        lines.append(" ".join(kept))
    return "\n".join(lines)


def removed(
    texts_of_tasks: list[list[str]], similarity: float, comparisons: Comparisons | None = None
) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Return (task, index) of the exact duplicates, and of all duplicates, among the documents of reading tasks."""
    comparisons = comparisons or Comparisons.of(sum(map(len, texts_of_tasks)))
    tasks = len(texts_of_tasks)
    with tempfile.TemporaryDirectory() as folder:
        build_dir = Path(folder)
        (build_dir / "spool").mkdir()
        (build_dir / "duplicates").mkdir()

        def found() -> set[tuple[int, int]]:
            kept = [Duplicates(build_dir).kept(task, len(texts)) for task, texts in enumerate(texts_of_tasks)]
            return {(task, place) for task in range(tasks) for place in np.flatnonzero(~kept[task]).tolist()}

        for task, texts in enumerate(texts_of_tasks):
            write_spool(build_dir / "spool", task, (text.split("\n") for text in texts), signed=True)
        for task, share in enumerate(comparisons.exact):
            find_exact(build_dir, task, share, tasks)
        join_exact(build_dir, len(comparisons.exact))
        exact = found()
        for task, share in enumerate(comparisons.near):
            find_near(build_dir, task, share, tasks, similarity)
        cluster_near(build_dir, len(comparisons.near))
        return exact, found()


def require_enough(documents: int, what: str) -> None:
    """Raise ValueError if there are too few documents to plant one."""
    if documents < FEWEST:
        raise ValueError(f"{what}: {documents} documents; must be at least {FEWEST}, so that one is planted")


def main(options: argparse.Namespace) -> None:
    """Plant copies, remove duplicates, and print the shares found."""
    check_json_option(options.json)
    for flag, shares in (("--similarity", [options.similarity]), ("--rates", options.rates)):
        for share in shares:
            if not 0.0 < share <= 1.0:
                raise ValueError(f"{flag} {share:g}: must be above 0 and at most 1")
    pieces = [piece for source in options.source for piece in Source.parse(source).pieces()]
    every = (clean_text(document.text) for piece in pieces for document in KINDS[piece.kind].read_piece(piece))
    everything = [text for text in every if not drop_reason(text)]
    require_enough(len(everything), f"--source {' '.join(options.source)}")
    exact, own = removed([everything], options.similarity)
    natural = [text for place, text in enumerate(everything) if (0, place) not in own]
    lengths = [len(text.split()) for text in natural]
    for fewest in options.fewest_words:
        require_enough(sum(length >= fewest for length in lengths), f"--fewest_words {fewest}")
    results = []
    near = len(own - exact)
    print(f"{len(everything):,} documents, of which {len(exact):,} are exact and {near:,} are near duplicates")
    for fewest in options.fewest_words:
        texts = [text for text, length in zip(natural, lengths, strict=True) if length >= fewest]
        for rate in options.rates:
            draw = random.Random(0)
            words = [word for text in draw.sample(texts, min(len(texts), 500)) for word in text.split()]
            count = int(PLANTED * len(texts))
            copies = draw.sample(texts, count)
            changed = [edited(draw, text, rate, words) for text in draw.sample(texts, count)]
            _, found = removed([texts, copies, changed], options.similarity)
            found_in = Counter(task for task, _ in found)
            result = {
                "fewest_words": fewest,
                "words_changed": rate,
                "documents": len(texts),
                "planted": count,
                "copies_found": found_in[1] / count,
                "edited_found": found_in[2] / count,
                "others_lost": found_in[0] / len(texts),
            }
            print(", ".join(f"{name} {value:g}" for name, value in result.items()), flush=True)
            results.append(result)
    if options.json:
        summary = {"documents": len(everything), "exact": len(exact), "near": near}
        write_atomically(
            options.json, json.dumps({**summary, "similarity": options.similarity, "planted": results}, indent=2)
        )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser: sources, and the copies to plant among them."""
    example = "python scripts/measure/measure_deduplication.py --source wikiextractor=extracted/ --source books=novels/"
    parser = make_parser("scripts.measure.measure_deduplication", __doc__, example)
    add = parser.add_argument
    add("--source", action="append", required=True, metavar="KIND=WHERE", help="a source; may be repeated")
    add("--similarity", type=float, default=0.6, help="threshold of near duplicates (default: 0.6)")
    add("--rates", type=float, nargs="+", default=[0.01, 0.02, 0.03], help="shares of words changed")
    add("--fewest_words", type=int, nargs="+", default=[0, 60], help="smallest number of words of the documents")
    add("--json", type=Path, metavar="FILE", help="write the figures to this file")
    return parser


if __name__ == "__main__":
    run(main, build_parser())
