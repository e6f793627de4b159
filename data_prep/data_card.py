"""What a build read, dropped and wrote: `data_card.json` beside the manifest, and the summary on the screen."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

from bert_pld.data.shards import Manifest, write_atomically
from data_prep.plan import DATA_CARD_NAME, Plan


def make_card(
    plan: Plan, manifest: Manifest, reading: list[dict[str, Any]], writing: list[dict[str, Any]]
) -> dict[str, Any]:
    """The counts of a build. Nothing in it depends on time, place or the number of workers."""
    dropped: Counter[str] = Counter()
    for counts in reading:
        dropped.update(counts["dropped"])
    tokens = sum(counts["tokens"] for counts in writing)
    rows = {split: manifest.rows(split) for split in manifest.splits}
    return {
        "build": plan.identity(),
        "arguments": dataclasses.asdict(plan.arguments),
        "documents": {
            **manifest.documents,
            "dropped": dict(sorted(dropped.items())),
        },
        "sentences": sum(counts["sentences"] for counts in reading),
        "text_bytes": sum(counts["bytes"] for counts in reading),
        "tokens": tokens,
        "unknown_token_rate": sum(counts["unknown"] for counts in writing) / max(tokens, 1),
        "rows": rows,
        "row_tokens": {split: manifest.tokens(split) for split in manifest.splits},
        "shards": {split: len(records) for split, records in manifest.splits.items()},
        "random_next_rows": sum(counts["random_next"] for counts in writing),
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


def write_card(card: dict[str, Any], output_dir: Path) -> None:
    """Write `data_card.json`."""
    write_atomically(output_dir / DATA_CARD_NAME, json.dumps(card, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def summary(card: dict[str, Any], output_dir: Path, seconds: float) -> str:
    """The card for a reader, with the time it took."""
    documents = card["documents"]
    dropped = documents["dropped"]
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    per_row = sum(card["row_tokens"].values()) / max(sum(card["rows"].values()), 1) / card["arguments"]["seq_length"]
    lines = [
        ("documents", f"{documents['train']:,} train, {documents['validation']:,} validation"),
        ("dropped", f"{sum(dropped.values()):,}" + (f" ({reasons})" if reasons else "")),
        ("sentences", f"{card['sentences']:,}"),
        ("tokens", f"{card['tokens']:,} ({card['unknown_token_rate']:.4%} [UNK])"),
        ("vocabulary", f"{card['vocabulary']['size']:,} entries, {card['vocabulary']['casing']}"),
        ("rows", f"{card['rows']['train']:,} train, {card['rows']['validation']:,} validation, {per_row:.1%} full"),
        ("seconds", f"{seconds:.1f} ({card['tokens'] / max(seconds, 1e-9):,.0f} tokens/s)"),
        ("written to", str(output_dir)),
    ]
    return "\n".join(f"{name:<11} {value}" for name, value in lines)
