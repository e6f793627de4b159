"""The data card's files, its HTML page, and its lines for a terminal.

`data_card.json` lies beside the manifest. `data_card.html` shows it as one page with its plots as SVG, readable without
a network.
"""

from __future__ import annotations

import html
import io
import json
from pathlib import Path
from typing import Any

from bert_pld.data.tokenizer import LONGEST_WORD_CHARACTERS
from bert_pld.files import write_atomically
from data_prep.data_card import warnings_of

DATA_CARD_NAME, DATA_CARD_PAGE_NAME = "data_card.json", "data_card.html"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .25rem 1rem .25rem 0; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } tr + tr { border-top: 1px solid #dfe5ec; }
figure { margin: 0; } svg { max-width: 100%; height: auto; } .plots { display: flex; flex-wrap: wrap; gap: 1rem; }
"""


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
    of_a_token = f"the document of a token has {rows['attended_tokens']:,.0f} tokens on average"
    return f"{rows['a_row']:.1f} documents apart; {of_a_token}"


def _reasons(counts: dict[str, int]) -> str:
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in counts.items())
    return f"{sum(counts.values()):,}" + (f" ({reasons})" if reasons else "")


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
