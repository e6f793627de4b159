"""The data card: what a build read, dropped and wrote.

`data_card.json` lies beside the manifest; `data_card.html` shows it as one page with its plots as SVG, readable without
a network; `summary` shows it on a terminal.
"""

from __future__ import annotations

import html
import importlib.metadata
import io
import itertools
import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

from bert_pld.data.fast_tokenizer import FastTokenizer
from bert_pld.data.shards import Manifest
from bert_pld.data.tokenizer import LONGEST_WORD_CHARACTERS
from bert_pld.files import write_atomically
from data_prep.plan import BuildPlan
from data_prep.rows.vocabulary import BuildTokenizer, unknown_warning
from data_prep.sources import Source
from data_prep.text.left_out import LeftOut

SMALLEST_KEPT_SHARE = 0.5
"""A build that keeps a smaller share of the characters that it read says so."""
SIGNIFICANT_ACCENTS = 0.005
"""Share of characters from which stripping accents counts as a change of the text. English texts stay under 0.0005."""
DATA_CARD_NAME, DATA_CARD_PAGE_NAME = "data_card.json", "data_card.html"

Counts = list[dict[str, Any]]
"""Counts of the tasks of a stage, in the order of the tasks."""
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .25rem 1rem .25rem 0; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } tr + tr { border-top: 1px solid #dfe5ec; }
figure { margin: 0; } svg { max-width: 100%; height: auto; } .plots { display: flex; flex-wrap: wrap; gap: 1rem; }
"""


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
    """Return what a reader of the card must know: much text left out, many [UNK], letters changed by stripping."""
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


def write_card(card: dict[str, Any], data_dir: Path) -> None:
    """Write `data_card.html` and then `data_card.json`."""
    write_atomically(data_dir / DATA_CARD_PAGE_NAME, page(card))
    write_atomically(data_dir / DATA_CARD_NAME, json.dumps(card, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def summary(card: dict[str, Any], data_dir: Path, seconds: float) -> str:
    """Return the card as lines for a terminal, with the duration of the build."""
    documents = card["documents"]
    kind = f", {card['vocabulary']['algorithm']}" if "algorithm" in card["vocabulary"] else ""
    fill = sum(card["row_tokens"].values()) / max(sum(card["rows"].values()), 1) / card["seq_length"]
    lines = [
        ("documents", f"{documents['train']:,} train, {documents['validation']:,} validation"),
        ("dropped", _reasons(documents["dropped"])),
        ("duplicates", _reasons(documents["duplicates"])),
        ("characters", _kept(card["characters"])),
        ("sentences", f"{card['sentences']:,}"),
        ("tokens", f"{card['tokens']:,} ({card['unknown_token_rate']:.4%} [UNK]{_long_words(card)})"),
        ("vocabulary", f"{card['vocabulary']['size']:,} entries, {card['vocabulary']['casing']}{kind}"),
        ("rows", f"{card['rows']['train']:,} train, {card['rows']['validation']:,} validation, {fill:.1%} full"),
        *([("in a row", _documents_line(card))] if "documents_in_rows" in card else []),
        ("seconds", f"{seconds:.1f} ({card['tokens'] / max(seconds, 1e-9):,.0f} tokens/s)"),
        ("written to", str(data_dir)),
    ]
    return "\n".join(f"{name:<11} {value}" for name, value in lines)


def _kept(characters: dict[str, Any]) -> str:
    parts = [f"{counts['characters']:,} {reason}" for reason, counts in characters["left_out"].items()]
    share = characters["kept"] / max(characters["read"], 1)
    kept = f"{characters['kept']:,} of {characters['read']:,} kept ({share:.1%})"
    return kept + (f"; left out: {'; '.join(parts)}" if parts else "")


def _long_words(card: dict[str, Any]) -> str:
    long = card["long_unknown_words"]
    return f", {long:,} of them for more than {LONGEST_WORD_CHARACTERS} characters" if long else ""


def _documents_line(card: dict[str, Any]) -> str:
    rows = card["documents_in_rows"]
    return f"{rows['a_row']:.1f} documents apart; that of a token has {rows['attended_tokens']:,.0f} tokens on average"


def _reasons(counts: dict[str, int]) -> str:
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in counts.items())
    return f"{sum(counts.values()):,}" + (f" ({reasons})" if reasons else "")


def _sum(histograms: list[list[int]]) -> list[int]:
    """Return the sum of histograms, which may have different numbers of bins."""
    return [sum(counts) for counts in itertools.zip_longest(*histograms, fillvalue=0)]


def page(card: dict[str, Any]) -> str:
    """Return the data card as an HTML page; the same card gives the same bytes."""
    documents, vocabulary, characters = card["documents"], card["vocabulary"], card["characters"]
    title = f"{card['tokens']:,} tokens, sequences of {card['seq_length']}"
    totals = [
        ("documents read", documents["read"]),
        *((f"dropped: {reason}", -count) for reason, count in documents["dropped"].items()),
        *((f"{kind} duplicates", -count) for kind, count in documents["duplicates"].items()),
        ("characters read, without blanks", characters["read"]),
        *(
            (
                f"left out: {reason}" + (f" ({counts['parts']:,} parts)" if counts["parts"] else ""),
                -counts["characters"],
            )
            for reason, counts in characters["left_out"].items()
        ),
        ("characters kept", characters["kept"]),
        ("documents for training", documents["train"]),
        ("documents for validation", documents["validation"]),
        ("sentences", card["sentences"]),
        ("tokens", card["tokens"]),
        ("rows for training", card["rows"]["train"]),
        ("rows for validation", card["rows"]["validation"]),
    ]
    facts = [
        ("objective", card["arguments"]["objective"]),
        *([("documents in a row", _documents_line(card))] if "documents_in_rows" in card else []),
        (
            "vocabulary",
            f"{vocabulary['size']:,} entries, {vocabulary['casing']}, SHA-256 {vocabulary['sha256']}",
        ),
        ("accents", vocabulary["accents"]),
        *([("tokenizer", _tokenizer_line(vocabulary))] if "algorithm" in vocabulary else []),
        ("[UNK]", f"{card['unknown_token_rate']:.4%} of the tokens{_long_words(card)}"),
        ("seed", str(card["arguments"]["seed"])),
        ("made with", ", ".join(f"{name} {version}" for name, version in card["made_with"].items())),
    ]
    sources = "".join(
        f"<tr><td>{html.escape(source['source'])}</td><td class=n>{source['documents']:,}</td>"
        f"<td class=n>{source['bytes'] / 1e6:,.1f}</td><td>{html.escape(source['licence'])}</td></tr>"
        for source in card["sources"]
    )
    histograms = card["histograms"]
    powers = [f"{2**digits:,}" for digits in range(max(map(len, histograms.values())))]
    sixteenths = [f"{place / 16:.0%}" for place in range(16)]
    plots = "".join(
        f"<figure>{_bars(*figure)}</figure>"
        for figure in (
            ("tokens per document, from", histograms["document_tokens"], powers),
            ("tokens per sentence, from", histograms["sentence_tokens"], powers),
            (f"filled share of a row of {card['seq_length']}, from", histograms["row_fill_sixteenths"], sixteenths),
        )
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head><body>
<h1>{title}</h1>
{"".join(f"<p><strong>Warning: {html.escape(warning)}.</strong></p>" for warning in warnings_of(card))}
<table>{"".join(f"<tr><td>{html.escape(name)}</td><td class=n>{count:,}</td></tr>" for name, count in totals)}</table>
<h2>Sources</h2>
<table><tr><th>source</th><th>documents kept</th><th>MB</th><th>licence of the text</th></tr>{sources}</table>
<h2>Lengths</h2>
<div class="plots">{plots}</div>
<h2>Build</h2>
<table>{"".join(f"<tr><td>{name}</td><td>{html.escape(value)}</td></tr>" for name, value in facts)}</table>
</body></html>
"""


def _tokenizer_line(vocabulary: dict[str, Any]) -> str:
    tokens = " ".join(f"{role} {token}" for role, token in vocabulary["special_tokens"].items())
    return f"{vocabulary['algorithm']}; {tokens}; SHA-256 {vocabulary['tokenizer_sha256']}"


def _bars(title: str, counts: list[int], labels: list[str]) -> str:
    """Return a bar chart as SVG. Dates and random identifiers are left out, so that the bytes repeat."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "none", "font.size": 8}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.4, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.bar(labels[: len(counts)], counts, color="#3b6ea5")
        axes.set_xlabel(title)
        axes.tick_params("x", rotation=60)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
