"""What a build read, dropped and wrote: `data_card.json` beside the manifest, and the summary on the screen."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

from bert_pld.data.shards import Manifest
from bert_pld.files import write_atomically
from data_prep.data_card_page import page
from data_prep.plan import DATA_CARD_NAME, DATA_CARD_PAGE_NAME, Plan
from data_prep.sources import Source

Counts = list[dict[str, Any]]


def make_card(
    plan: Plan, manifest: Manifest, reading: Counts, removed: dict[str, int], writing: Counts
) -> dict[str, Any]:
    """The counts of a build. Nothing in it depends on time, place or the number of workers.

    Args:
        plan: of the build.
        manifest: of the data directory that the card is for.
        reading: the counts of the reading tasks, in order.
        removed: duplicates by kind, `exact` and `near`.
        writing: the counts of the writing tasks, in order.
    """
    arguments = plan.arguments
    sources: list[dict[str, Any]] = [
        {"source": source, "licence": Source.parse(source).kind.licence, "documents": 0, "bytes": 0, "dropped": {}}
        for source in arguments.sources
    ]
    for number, counts in zip(plan.source_of_task, reading, strict=True):
        of_source = sources[number]
        of_source["documents"] += counts["documents"]
        of_source["bytes"] += counts["bytes"]
        of_source["dropped"] = dict(sorted((Counter(of_source["dropped"]) + Counter(counts["dropped"])).items()))
    dropped: Counter[str] = sum((Counter(source["dropped"]) for source in sources), Counter())
    tokens = sum(counts["tokens"] for counts in writing)
    of_length = [counts["lengths"][str(manifest.attributes.seq_length)] for counts in writing]
    return {
        "build": plan.identity(),
        "arguments": dataclasses.asdict(arguments),
        "seq_length": manifest.attributes.seq_length,
        "sources": sources,
        "documents": {
            "read": sum(source["documents"] for source in sources) + dropped.total(),
            "dropped": dict(sorted(dropped.items())),
            "duplicates": removed,
            **manifest.documents,
        },
        "sentences": sum(sum(counts["sentence_lengths"]) for counts in writing),
        "text_bytes": sum(source["bytes"] for source in sources),
        "tokens": tokens,
        "unknown_token_rate": sum(counts["unknown"] for counts in writing) / max(tokens, 1),
        "histograms": {
            "document_tokens": _sum(counts["document_lengths"] for counts in writing),
            "sentence_tokens": _sum(counts["sentence_lengths"] for counts in writing),
            "row_fill_sixteenths": _sum(counts["row_lengths"] for counts in of_length),
        },
        "rows": {split: manifest.rows(split) for split in manifest.splits},
        "row_tokens": {split: manifest.tokens(split) for split in manifest.splits},
        "shards": {split: len(records) for split, records in manifest.splits.items()},
        "random_next_rows": sum(counts["random_next"] for counts in of_length),
        "vocabulary": {
            "size": manifest.attributes.vocabulary_size,
            "sha256": manifest.attributes.vocabulary_hash,
            "casing": manifest.attributes.casing,
        },
        "made_with": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("sentencex", "tokenizers", "h5py", "numpy")},
        },
    }


def write_card(card: dict[str, Any], data_dir: Path) -> None:
    """Write `data_card.json` and, for a reader, `data_card.html`."""
    write_atomically(data_dir / DATA_CARD_PAGE_NAME, page(card))
    write_atomically(data_dir / DATA_CARD_NAME, json.dumps(card, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def summary(card: dict[str, Any], data_dir: Path, seconds: float) -> str:
    """The card for a terminal, with the time it took."""
    documents = card["documents"]
    fill = sum(card["row_tokens"].values()) / max(sum(card["rows"].values()), 1) / card["seq_length"]
    lines = [
        ("documents", f"{documents['train']:,} train, {documents['validation']:,} validation"),
        ("dropped", _reasons(documents["dropped"])),
        ("duplicates", _reasons(documents["duplicates"])),
        ("sentences", f"{card['sentences']:,}"),
        ("tokens", f"{card['tokens']:,} ({card['unknown_token_rate']:.4%} [UNK])"),
        ("vocabulary", f"{card['vocabulary']['size']:,} entries, {card['vocabulary']['casing']}"),
        ("rows", f"{card['rows']['train']:,} train, {card['rows']['validation']:,} validation, {fill:.1%} full"),
        ("seconds", f"{seconds:.1f} ({card['tokens'] / max(seconds, 1e-9):,.0f} tokens/s)"),
        ("written to", str(data_dir)),
    ]
    return "\n".join(f"{name:<11} {value}" for name, value in lines)


def _reasons(counts: dict[str, int]) -> str:
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in counts.items())
    return f"{sum(counts.values()):,}" + (f" ({reasons})" if reasons else "")


def _sum(histograms: Any) -> list[int]:
    """Histograms of several lengths, added up."""
    total: list[int] = []
    for histogram in histograms:
        total += [0] * (len(histogram) - len(total))
        for place, count in enumerate(histogram):
            total[place] += count
    return total
