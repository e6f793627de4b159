"""Compare sentence segmenters on a gold file: boundary precision, recall and F1, by phenomenon and register, and speed.

python scripts/measure/compare_segmenters.py --gold development.json --gold held_out.json --text sample.txt

Segmenters that are not installed are listed and skipped (`pip install blingfire nupunkt pysbd syntok`).

A gold file is a JSON list of `{"id": str, "register": str, "text": str}`. A text is one paragraph. `‖` marks every end
of a sentence, before the space that follows it, and `¦` marks a place where both readings are right:

    [{"id": "1", "register": "dialogue", "text": "“Who is it?” he asked.‖ Mr. Brown came in."}]

The end of a paragraph does not count as a boundary. The phenomenon of a gap between words is the first that applies:
`quotation` (a quotation mark at the gap, or the gap is within a quotation), `ellipsis`, `abbreviation` (the word before
the gap, including initials), `number` (on either side), `other`. `--text` measures the speed on a text with one
paragraph per line: the segmenters run in turns, and MB/s (of processor time) is the median of `--repeats` turns.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import itertools
import json
import platform
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bert_pld.cli import check_json_option, make_parser, require_positive, run
from bert_pld.files import write_atomically
from data_prep.text.sentences import split_sentences

END, EITHER = "‖", "¦"
PHENOMENA = ("quotation", "ellipsis", "abbreviation", "number", "other")
_ELLIPSIS = re.compile(r"(?:…|\.\.|(?:^| )\.)[\"'”’)\]]*$|^(?:…|\.)")
_ABBREVIATED = (
    "mr mrs ms dr st sr jr prof rev hon gen col capt maj lt lieut comdr cmdr sgt gov sen rep pres messrs mme mlle esq"
    " bros co corp inc ltd dept univ mt ft pt av ave rd no nos vol vols op fig figs ch ed eds pp p c ca cf"
    " vs viz etc et al jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun n adj adv"
)
_ABBREVIATION = re.compile(
    rf"[^\w]*(?:[^\W\d_]|(?:\w\.)+\w|(?:[A-Z][a-z]?\.)+[A-Z]|{'|'.join(_ABBREVIATED.split())})\.\W*$", re.IGNORECASE
)
_NUMBER = re.compile(r"\d\W*$")
_OPENING, _CLOSING = "“‘«„", "”»"

Segmenter = Callable[[str], list[str]]


def _blingfire() -> Segmenter:
    module = importlib.import_module("blingfire")
    return lambda text: module.text_to_sentences(text).split("\n")


def _syntok() -> Segmenter:
    process = importlib.import_module("syntok.segmenter").process

    def segment(text: str) -> list[str]:
        # Cut at offsets, because its tokens spell some contractions differently from the text.
        starts = [sentence[0].offset for paragraph in process(text) for sentence in paragraph]
        return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]

    return segment


SEGMENTERS: dict[str, Callable[[], Segmenter]] = {
    "data_prep": lambda: split_sentences,
    "sentencex": lambda: functools.partial(importlib.import_module("sentencex").segment, "en"),
    "blingfire": _blingfire,
    "nupunkt": lambda: importlib.import_module("nupunkt").sent_tokenize,
    "pysbd": lambda: importlib.import_module("pysbd").Segmenter(language="en", clean=False).segment,
    "syntok": _syntok,
}


def boundaries(parts: list[str], text: str) -> set[int]:
    """Return the sentence boundaries, each as the number of characters before it that are not white space.

    A segmenter may leave out text that is not a sentence (a row of dots), but each part must be in the text.
    """
    bare, starts, length = "".join(text.split()), set(), 0
    for part in map(str.split, parts):
        start = bare.find("".join(part), length)
        if start < 0:
            raise ValueError(f"the segmenter gave {' '.join(part)[:60]!r}, which is not in the text")
        starts.add(start)
        length = start + len("".join(part))
    return starts - {0, len(bare)}


def read_text(path: Path) -> str:
    """Read a text file; raise ValueError if it is not UTF-8 or has only white space."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be UTF-8 ({error})") from error
    if not text.strip():
        raise ValueError(f"{path}: contains only white space; must contain at least one line of text")
    return text


def read_gold(path: Path) -> list[dict[str, Any]]:
    """Read items with `register`, the unmarked `text`, `ends`, `either` (see `boundaries`), and `phenomenon` by gap."""
    try:
        marked_items = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(marked_items, list):
        raise ValueError(f"{path}: must be a JSON list of items")
    items = []
    for number, item in enumerate(marked_items, 1):
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("id", "register", "text")):
            raise ValueError(f"{path}: item {number}: must be an object with id, register and text")
        marked = item["text"]
        text = marked.replace(END, "").replace(EITHER, "")
        items.append(
            {
                "id": item["id"],
                "register": item["register"],
                "text": text,
                "ends": boundaries(marked.replace(EITHER, "").split(END), text),
                "either": boundaries(marked.replace(END, "").split(EITHER), text),
                "phenomenon": phenomena(text),
            }
        )
    if not any(item["ends"] for item in items):
        raise ValueError(f"{path}: no boundary is marked; must have at least one {END} between two sentences")
    return items


def phenomena(text: str) -> dict[int, str]:
    """Return the phenomenon of each gap between words."""
    words = text.split()
    found, length, quoted = {}, 0, False
    for word, following in itertools.pairwise(words):
        length += len(word)
        for character in word:
            if character in _OPENING or character in _CLOSING:
                quoted = character in _OPENING
            elif character == '"':
                quoted = not quoted
        if quoted or word[-1] in "\"'”’»" or following[0] in "\"'“‘«„":
            found[length] = "quotation"
        elif _ELLIPSIS.search(word) or _ELLIPSIS.search(following):
            found[length] = "ellipsis"
        elif _ABBREVIATION.match(word):
            found[length] = "abbreviation"
        elif _NUMBER.search(word) or following[0].isdigit():
            found[length] = "number"
        else:
            found[length] = "other"
    return found


def scores(right: int, found: int, wanted: int) -> dict[str, float | int]:
    """Return precision, recall and F1; without any boundary found, the precision is 1."""
    precision = right / found if found else 1.0
    recall = right / wanted if wanted else 1.0
    f1 = 2 * right / (found + wanted) if found + wanted else 1.0
    counts = {"wanted": wanted, "missed": wanted - right, "wrong": found - right}
    return {**counts, "precision": precision, "recall": recall, "f1": f1}


def measure_accuracy(segment: Segmenter, gold: list[dict[str, Any]], show: bool = False) -> dict[str, Any]:
    """Return scores in total, by phenomenon and by register; `exact_paragraphs` is the share without a fault."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("right", "found", "wanted")}
    exact = 0
    for item in gold:
        found, ends = boundaries(segment(item["text"]), item["text"]) - item["either"], item["ends"]
        exact += found == ends
        if show and found != ends:
            print(f"  {item['id']}: {_shown(item['text'], ends - found, found - ends)}")
        for kind, places in (("right", found & ends), ("found", found), ("wanted", ends)):
            for place in places:
                keys = ("all", item["phenomenon"].get(place, "inside a word"), f"register {item['register']}")
                counts[kind].update(keys)
    keys = sorted(set().union(*counts.values()))
    of = {key: scores(counts["right"][key], counts["found"][key], counts["wanted"][key]) for key in keys}
    return {
        **of.pop("all"),
        "exact_paragraphs": exact / len(gold),
        "by_phenomenon": {key: of[key] for key in (*PHENOMENA, "inside a word") if key in of},
        "by_register": {key.removeprefix("register "): of[key] for key in of if key.startswith("register ")},
    }


def _shown(text: str, missed: set[int], wrong: set[int]) -> str:
    words, length = [], 0
    for word in text.split():
        length += len(word)
        words.append(word + " [missed]" * (length in missed) + " [WRONG]" * (length in wrong))
    return " ".join(words)


def measure_speed(segmenters: dict[str, Segmenter], text: str, repeats: int) -> dict[str, dict[str, float]]:
    """Return MB/s (10⁶ bytes of UTF-8) of one process: median, lowest and highest; slow segmenters get less text."""
    lines = [line for line in text.split("\n") if line.strip()]
    documents = [lines[start : start + 10] for start in range(0, len(lines), 10)]
    shares = {}
    for name, segment in segmenters.items():
        few = documents[: max(len(documents) // 100, 1)]
        estimate = _seconds(name, segment, few) * len(documents) / len(few)
        shares[name] = documents[: max(int(len(documents) * min(1.0, 2.0 / estimate)), 1)]
    rates: dict[str, list[float]] = {name: [] for name in segmenters}
    for _ in range(repeats):
        for name, segment in segmenters.items():
            size = sum(len(line.encode()) + 1 for document in shares[name] for line in document)
            rates[name].append(size / _seconds(name, segment, shares[name]) / 1e6)
    return {
        name: {"mb_per_s": statistics.median(of), "mb_per_s_least": min(of), "mb_per_s_most": max(of)}
        for name, of in rates.items()
    }


def _seconds(name: str, segment: Segmenter, documents: list[list[str]]) -> float:
    """Segment documents; other segmenters than ours get single paragraphs, because they do not split at line feeds."""
    texts = ["\n".join(lines) for lines in documents] if name == "data_prep" else itertools.chain(*documents)
    start = time.process_time()
    for text in texts:
        segment(text)
    # On a coarse clock, a short text may take less than one tick.
    return max(time.process_time() - start, time.get_clock_info("process_time").resolution)


def main(options: argparse.Namespace) -> None:
    """Measure, print the table, and write the figures if requested."""
    check_json_option(options.json)
    require_positive(options, "repeats")
    text = None if options.text is None else read_text(options.text)
    golds = [(path.stem, read_gold(path)) for path in options.gold]
    segmenters, missing = {}, []
    for name, make in SEGMENTERS.items():
        try:
            segmenters[name] = make()
        except ModuleNotFoundError:
            missing.append(name)
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in segmenters if name != "data_prep"},
        "gold": {},
    }
    for stem, gold in golds:
        figures = {name: measure_accuracy(of, gold, show=name == options.faults) for name, of in segmenters.items()}
        result["gold"][stem] = {
            "paragraphs": len(gold),
            "paragraphs_by_register": dict(sorted(Counter(item["register"] for item in gold).items())),
            "boundaries": sum(len(item["ends"]) for item in gold),
            "gaps_by_phenomenon": dict(Counter(kind for item in gold for kind in item["phenomenon"].values())),
            "segmenters": figures,
        }
        print(f"{stem}: {len(gold)} paragraphs; by phenomenon: missed + wrong\n{_table(figures)}")
    if text is not None:
        result["speed_text_bytes"] = len(text.encode())
        result["speed"] = measure_speed(segmenters, text, options.repeats)
        for name, of in result["speed"].items():
            rates = "".join(f"{of[key]:8.1f}" for key in ("mb_per_s_least", "mb_per_s", "mb_per_s_most"))
            print(f"{name:12}{rates} MB/s (least, median, most of {options.repeats})")
    if missing:
        print(f"not installed, skipped: {', '.join(missing)}")
    if options.json is not None:
        write_atomically(options.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def _table(figures: dict[str, dict[str, Any]]) -> str:
    head = f"{'':12}{'precision':>10}{'recall':>8}{'F1':>8}{'exact':>7}" + "".join(f"{p:>14}" for p in PHENOMENA)
    lines = [head]
    for name, of in figures.items():
        faults = (of["by_phenomenon"].get(p, {"missed": 0, "wrong": 0}) for p in PHENOMENA)
        kinds = "".join(f"{f['missed']} + {f['wrong']}".rjust(14) for f in faults)
        line = f"{name:12}{of['precision']:10.3f}{of['recall']:8.3f}{of['f1']:8.3f}{of['exact_paragraphs']:7.2f}"
        lines.append(line + kinds)
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser: gold files, a text, and the file for the figures."""
    parser = make_parser(
        "scripts.measure.compare_segmenters",
        __doc__,
        "python scripts/measure/compare_segmenters.py --gold development.json --text sample.txt --json figures.json",
    )
    parser.add_argument("--gold", type=Path, required=True, action="append", metavar="FILE", help="may be repeated")
    parser.add_argument("--text", type=Path, metavar="FILE", help="text to measure the speed (default: no speed)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each segmenter (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--faults", metavar="NAME", choices=SEGMENTERS, help="print wrongly split paragraphs")
    return parser


if __name__ == "__main__":
    run(main, build_parser())
