"""Data preparation: end to end against bare tokenization on the same text and cores, and against tokenizing in Python.

The contenders take turns in one run, each in a process of its own:

- the library `tokenizers` alone on split sentences, in 1, 2, … threads: `encode_batch`, and `encode_batch_fast`, which
  omits offsets;
- `python -m data_prep build` with as many workers, from the sources to shards, and `verify` of the result;
- the same with static masks in NVIDIA's format (`--format nvidia`);
- on a sample, the Python tokenizer of `transformers` alone (`pure_python`), and the whole published approach in Python,
  from sentences to NVIDIA's format (`python_static`).

The last two are for WordPiece; `--algorithm` measures the others with another tokenizer.

A build's time includes everything, also the start of Python; the others count from the first sentence to the last token
or row. Memory is read from /proc while a command runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.data.contenders import BARE, BARE_FAST, PURE_PYTHON, PYTHON_STATIC
from benchmarks.data.measured_process import run_measured
from benchmarks.data.python_static import DUPE_FACTOR
from benchmarks.options import positive_integers
from bert_pld.cli import require_positive

ALGORITHMS = ("wordpiece", "bpe", "unigram")

EXAMPLE = "python -m benchmarks data --source wikiextractor=extracted/ --vocab vocab.txt --json data.json"
_NVIDIA = "build --format nvidia 1"
_DATA_PREP = [sys.executable, "-m", "data_prep"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subject's own options."""
    add = parser.add_argument
    add("--source", action="append", metavar="KIND=WHERE", help="as `data_prep build` takes it (default: python-docs)")
    add("--vocab", type=Path, metavar="FILE", help="vocab.txt (default: a new one is trained first)")
    add("--vocab_size", type=int, default=8192, help="size of a vocabulary that is trained (default 8192)")
    add("--algorithm", choices=ALGORITHMS, default=ALGORITHMS[0], help="of a trained tokenizer (default wordpiece)")
    add("--seq_length", type=int, default=128, help="tokens a row (default 128)")
    add("--workers", default="1,2", help="numbers of build workers and of threads (default 1,2)")
    add("--rounds", type=int, default=3, help="turns of each contender (default 3)")
    add("--python_bytes", type=int, default=300_000, help="bytes of text for the Python contenders (default 300000)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run every contender in turns; return the `seconds` of every round, and `ratios` of tokens/s."""
    workers = positive_integers("--workers", options.workers)
    require_positive(options, "rounds", "python_bytes", "vocab_size")
    cores = len(os.sched_getaffinity(0))
    if max(workers) > cores:
        raise ValueError(f"--workers {options.workers}: must be at most {cores}, the cores that this process may use")
    if options.vocab is not None and options.algorithm != ALGORITHMS[0]:
        raise ValueError(f"--algorithm {options.algorithm}: for a tokenizer that is trained; leave out --vocab")
    if options.vocab is not None and not options.vocab.is_file():
        raise ValueError(f"--vocab {options.vocab}: no such file")
    sources = options.source or ["python-docs"]
    with tempfile.TemporaryDirectory(prefix="bench_data_") as folder:
        return _measure(options, sources, workers, cores, Path(folder))


def _measure(
    options: argparse.Namespace, sources: list[str], workers: list[int], cores: int, folder: Path
) -> dict[str, Any]:
    named = [part for source in sources for part in ("--source", source)]
    base = [*_DATA_PREP, "build", *named, "--seq_length", str(options.seq_length)]
    # The first build warms the file cache and makes the vocabulary that all contenders use.
    is_wordpiece = options.algorithm == ALGORITHMS[0]
    trained = ["--vocab_size", str(options.vocab_size), "--algorithm", options.algorithm]
    given = ["--vocab", str(options.vocab)] if options.vocab else trained
    first = folder / "first"
    run_measured([*base, *given, "--workers", str(max(workers)), "--output_dir", str(first)])
    card = json.loads((first / "data_card.json").read_text(encoding="utf-8"))
    sentences = folder / "sentences.txt"
    run_measured([sys.executable, "-m", "benchmarks.data.extract", str(sentences), *sources])

    output = folder / "build"
    same = ["--vocab", str(first / "vocab.txt")] if is_wordpiece else ["--tokenizer", str(first / "tokenizer.json")]
    build = [*base, *same, "--output_dir", str(output)]
    contenders: dict[str, dict[str, Any]] = {}
    for _ in range(options.rounds):
        for count in workers:
            for name in (BARE, BARE_FAST):
                figures = _run_contender(name, sentences, first, 0, count)
                _add(contenders, f"{name} {count}", count, figures, figures)
            built = run_measured([*build, "--workers", str(count)])
            checked = run_measured([*_DATA_PREP, "verify", str(output)])
            both = [dataclasses.asdict(run) for run in (built, checked)]
            _add(contenders, f"build {count}", count, both[0], card)
            summed = {key: both[0][key] + both[1][key] for key in ("seconds", "processor_seconds")}
            _add(contenders, f"build + verify {count}", count, summed, card)
            shutil.rmtree(output)
        if not is_wordpiece:
            continue
        # As many statically masked copies as the Python approach makes.
        built = run_measured([*build, "--workers", "1", "--format", "nvidia", "--dupe_factor", str(DUPE_FACTOR)])
        _add(contenders, _NVIDIA, 1, dataclasses.asdict(built), card)
        shutil.rmtree(output)
        for name in (PURE_PYTHON, PYTHON_STATIC):
            figures = _run_contender(name, sentences, first, options.python_bytes, 1, options.seq_length)
            _add(contenders, name, 1, figures, figures)
    for entry in contenders.values():
        entry["seconds_median"] = statistics.median(entry["seconds"])
        entry["tokens_per_s"] = entry["tokens"] / entry["seconds_median"]
        entry["tokens_per_s_best"] = entry["tokens"] / min(entry["seconds"])
        entry["mb_per_s"] = entry["text_bytes"] / entry["seconds_median"] / 1e6
    return {
        "sources": sources,
        "algorithm": options.algorithm,
        "vocabulary_entries": card["vocabulary"]["size"],
        "documents": card["documents"]["train"] + card["documents"]["validation"],
        "tokens": card["tokens"],
        "text_bytes": card["text_bytes"],
        "seq_length": options.seq_length,
        "rounds": options.rounds,
        "cores": cores,
        "python": platform.python_version(),
        "made_with": card["made_with"],
        "contenders": contenders,
        "ratios": _ratios(contenders, workers, is_wordpiece),
    }


def _run_contender(
    name: str, sentences: Path, tokenizer_folder: Path, most_bytes: int, threads: int, seq_length: int = 0
) -> dict[str, Any]:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(threads)}
    module = [sys.executable, "-m", "benchmarks.data.contenders"]
    arguments = map(str, (sentences, tokenizer_folder, most_bytes, seq_length))
    run = run_measured([*module, name, *arguments], environment)
    return dict(json.loads(run.output.splitlines()[-1]))


def _add(
    contenders: dict[str, dict[str, Any]], name: str, cores: int, run: dict[str, Any], size: dict[str, Any]
) -> None:
    sizes = {"tokens": size["tokens"], "text_bytes": size["text_bytes"]}
    entry = contenders.setdefault(name, {"cores": cores, **sizes, "seconds": [], "processor_seconds": []})
    for key in ("seconds", "processor_seconds"):
        entry[key].append(run[key])
    for key in ("peak_process_bytes", "peak_total_bytes"):
        if key in run:
            entry[key] = max(entry.get(key, 0), run[key])


def _ratios(
    contenders: dict[str, dict[str, Any]], workers: list[int], with_python: bool
) -> dict[str, dict[str, float]]:
    """Ratios of tokens/s within a round: by wall-clock time, and their median by processor time."""

    def ratio(name: str, other: str) -> dict[str, float]:
        mine, theirs = contenders[name], contenders[other]
        tokens = mine["tokens"] / theirs["tokens"]
        found = [tokens * b / a for a, b in zip(mine["seconds"], theirs["seconds"], strict=True)]
        used = [tokens * b / a for a, b in zip(mine["processor_seconds"], theirs["processor_seconds"], strict=True)]
        least_and_most = {"least": min(found), "most": max(found)}
        return {"median": statistics.median(found), **least_and_most, "processor_time": statistics.median(used)}

    pairs = []
    for count in workers:
        pairs += [(f"build {count}", f"{bare} {count}") for bare in (BARE, BARE_FAST)]
        pairs.append((f"build + verify {count}", f"{BARE} {count}"))
    first = f"build {workers[0]}"
    pairs += [(f"build {count}", first) for count in workers[1:]]
    if with_python:
        pairs += [(first, PURE_PYTHON), (first, PYTHON_STATIC), (_NVIDIA, PYTHON_STATIC)]
    return {f"{name} / {other}": ratio(name, other) for name, other in pairs}


def report(result: dict[str, Any]) -> str:
    """Format the figures as two tables."""
    lines = [
        f"{', '.join(result['sources'])}: {result['documents']:,} documents, {result['text_bytes'] / 1e6:.1f} MB,"
        f" {result['tokens']:,} tokens of {result['vocabulary_entries']:,} entries; {result['rounds']} rounds",
        "",
        f"{'':26}{'cores':>6}{'seconds':>9}{'least':>8}{'processor s':>13}{'tokens/s':>11}{'MB/s':>7}"
        f"{'peak MB':>9}{'all MB':>8}",
    ]
    for name, entry in result["contenders"].items():
        memory = [entry.get(key) for key in ("peak_process_bytes", "peak_total_bytes")]
        one, everything = ("" if size is None else f"{size / 1e6:.0f}" for size in memory)
        lines.append(
            f"{name:26}{entry['cores']:6}{entry['seconds_median']:9.2f}{min(entry['seconds']):8.2f}"
            f"{statistics.median(entry['processor_seconds']):13.2f}{entry['tokens_per_s']:11,.0f}{entry['mb_per_s']:7.2f}"
            f"{one:>9}{everything:>8}"
        )
    lines += ["", f"{'tokens/s of … over …':48}{'median':>8}{'least':>8}{'most':>8}{'processor':>11}"]
    for name, of in result["ratios"].items():
        lines.append(f"{name:48}{of['median']:8.2f}{of['least']:8.2f}{of['most']:8.2f}{of['processor_time']:11.2f}")
    return "\n".join(lines)
