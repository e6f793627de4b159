"""The data card: what a build read, dropped and wrote.

`data_card_page.py` writes it to files and shows it.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import platform
from collections import Counter
from typing import Any

from bert_pld.data.fast_tokenizer import FastTokenizer
from bert_pld.data.shards import Manifest
from data_prep.plan import BuildPlan
from data_prep.rows.vocabulary import BuildTokenizer, unknown_warning
from data_prep.sources import Source
from data_prep.text.left_out import LeftOut

SMALLEST_KEPT_SHARE = 0.5
"""A build warns if it keeps a smaller share of the characters that it read."""
SIGNIFICANT_ACCENTS = 0.005
"""Share of characters from which stripping accents counts as a change of the text. English texts stay under 0.0005."""

Counts = list[dict[str, Any]]
"""Counts of the tasks of a stage, in the order of the tasks."""


def make_card(
    plan: BuildPlan,
    manifest: Manifest,
    reading: Counts,
    removed: dict[str, int],
    writing: Counts,
    tokenizer: BuildTokenizer,
) -> dict[str, Any]:
    """Return the data card of a data directory. It does not depend on time, place or the number of workers.

    `reading` and `writing` are the counts of the reading and the writing tasks; `removed` counts duplicates by kind.
    """
    arguments, stored = plan.arguments, manifest.attributes
    sources: list[dict[str, Any]] = []
    for number, source in enumerate(arguments.sources):
        own = [counts for task, counts in zip(plan.source_of_task, reading, strict=True) if task == number]
        totals = {name: sum(counts[name] for counts in own) for name in ("documents", "bytes")}
        licence = Source.parse(source).kind.licence
        read = _characters_read(own)
        sources.append(
            {"source": source, "licence": licence, **totals, "dropped": dropped_by_reason(own), "characters": read}
        )
    dropped = dropped_by_reason(reading)
    tokens = sum(counts["tokens"] for counts in writing)
    length_counts = [counts["lengths"][str(stored.seq_length)] for counts in writing]
    return {
        "build": plan.identity(),
        "arguments": arguments.to_json(),
        "seq_length": stored.seq_length,
        "sources": sources,
        "documents": {
            "read": sum(source["documents"] for source in sources) + sum(dropped.values()),
            "dropped": dropped,
            "duplicates": removed,
            **manifest.documents,
        },
        "characters": _characters(reading, sum(counts["characters"] for counts in writing)),
        "sentences": sum(sum(counts["sentence_lengths"]) for counts in writing),
        "text_bytes": sum(source["bytes"] for source in sources),
        "tokens": tokens,
        "unknown_token_rate": sum(counts["unknown"] for counts in writing) / max(tokens, 1),
        "long_unknown_words": sum(counts.get("long_unknown", 0) for counts in writing),
        "histograms": {
            "document_tokens": _sum([counts["document_lengths"] for counts in writing]),
            "sentence_tokens": _sum([counts["sentence_lengths"] for counts in writing]),
            "row_fill_sixteenths": _sum([counts["row_lengths"] for counts in length_counts]),
        },
        "rows": {split: manifest.rows(split) for split in manifest.splits},
        "row_tokens": {split: manifest.tokens(split) for split in manifest.splits},
        "shards": {split: len(records) for split, records in manifest.splits.items()},
        **_documents_in_rows(manifest, length_counts),
        "random_next_rows": sum(counts["random_next"] for counts in length_counts),
        "vocabulary": {
            "size": stored.vocabulary_size,
            "sha256": stored.vocabulary_hash,
            "casing": stored.casing,
            "accents": "kept" if tokenizer.keeps_accents else "stripped",
            **_of_any_tokenizer(tokenizer),
        },
        "made_with": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("sentencex", "tokenizers", "h5py", "numpy")},
        },
    }


def _documents_in_rows(manifest: Manifest, length_counts: Counts) -> dict[str, Any]:
    """Return what the card says of rows whose documents do not attend to each other."""
    if manifest.attended_tokens is None:
        return {}
    parts = sum(counts["documents"]["parts"] for counts in length_counts)
    rows = sum(map(manifest.rows, manifest.splits))
    return {"documents_in_rows": {"a_row": parts / rows, "attended_tokens": manifest.attended_tokens}}


def _of_any_tokenizer(tokenizer: BuildTokenizer) -> dict[str, Any]:
    """Return what the card says of a tokenizer other than BERT's."""
    if not isinstance(tokenizer, FastTokenizer):
        return {}
    return {
        "algorithm": tokenizer.kind,
        "tokenizer_sha256": tokenizer.tokenizer_hash,
        "special_tokens": tokenizer.special_tokens,
    }


def _characters(reading: Counts, kept: int) -> dict[str, Any]:
    """Return how many characters, without blanks, were read, kept in the end, and left out by reason."""
    result = _characters_read(reading)
    if result["kept"] > kept:
        result["left_out"]["duplicate"] = {"parts": 0, "characters": result["kept"] - kept}
    return {**result, "kept": kept, "changed_by_accents": share_changed_by_accents(reading)}


def _characters_read(reading: Counts) -> dict[str, Any]:
    left_out = LeftOut()
    for counts in reading:
        left_out.update(LeftOut.from_json(counts["left_out"]))
    kept = sum(counts["characters"] for counts in reading)
    return {"read": kept + sum(left_out.characters.values()), "kept": kept, "left_out": left_out.to_json()}


def share_changed_by_accents(reading: Counts) -> float:
    """Return the share of characters that stripping accents would change in scripts without capitals."""
    changed, characters = (sum(counts[name] for counts in reading) for name in ("changed_by_accents", "characters"))
    return float(changed / max(characters, 1))


def warnings_of(card: dict[str, Any]) -> list[str]:
    """Return the warnings of a build: most text left out, many [UNK], text changed by the removal of accents."""
    characters, vocabulary = card["characters"], card["vocabulary"]
    found = []
    if characters["kept"] < SMALLEST_KEPT_SHARE * characters["read"]:
        most = sorted(characters["left_out"].items(), key=lambda item: -item[1]["characters"])[:3]
        reasons = "; ".join(f"{counts['characters']:,} {reason}" for reason, counts in most)
        share = characters["kept"] / characters["read"]
        found.append(f"only {share:.1%} of the characters that were read are kept; left out: {reasons}")
    if warning := unknown_warning(card["unknown_token_rate"]):
        found.append(warning)
    if vocabulary["accents"] == "stripped" and characters["changed_by_accents"] >= SIGNIFICANT_ACCENTS:
        found.append(
            f"stripping accents changed {characters['changed_by_accents']:.1%} of the characters, in scripts without"
            " capitals (vowel signs removed, Hangul taken apart)"
            + ("" if "algorithm" in vocabulary else "; --accents keep or --cased keeps them")
        )
    return found


def dropped_by_reason(reading: Counts) -> dict[str, int]:
    """Return the number of dropped documents by reason, in the order of the reasons."""
    dropped: Counter[str] = sum((Counter(counts["dropped"]) for counts in reading), Counter())
    return dict(sorted(dropped.items()))


def _sum(histograms: list[list[int]]) -> list[int]:
    """Return the sum of histograms, which may have different numbers of bins."""
    return [sum(counts) for counts in itertools.zip_longest(*histograms, fillvalue=0)]
