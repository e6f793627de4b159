"""The data card as a page: one HTML file with its plots in it as SVG, readable without a network."""

from __future__ import annotations

import html
import io
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .25rem 1rem .25rem 0; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } tr + tr { border-top: 1px solid #dfe5ec; }
figure { margin: 0; } svg { max-width: 100%; height: auto; } .plots { display: flex; flex-wrap: wrap; gap: 1rem; }
"""


def page(card: dict[str, Any]) -> str:
    """The page of a data card; the same card gives the same bytes."""
    documents, vocabulary = card["documents"], card["vocabulary"]
    title = f"{card['tokens']:,} tokens, sequences of {card['seq_length']}"
    totals = [
        ("documents read", documents["read"]),
        *((f"dropped: {reason}", -count) for reason, count in documents["dropped"].items()),
        *((f"{kind} duplicates", -count) for kind, count in documents["duplicates"].items()),
        ("documents for training", documents["train"]),
        ("documents for validation", documents["validation"]),
        ("sentences", card["sentences"]),
        ("tokens", card["tokens"]),
        ("rows for training", card["rows"]["train"]),
        ("rows for validation", card["rows"]["validation"]),
    ]
    facts = [
        ("objective", card["arguments"]["objective"]),
        ("vocabulary", f"{vocabulary['size']:,} entries, {vocabulary['casing']}, SHA-256 {vocabulary['sha256']}"),
        ("[UNK]", f"{card['unknown_token_rate']:.4%} of the tokens"),
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
            ("tokens a document, from", histograms["document_tokens"], powers),
            ("tokens a sentence, from", histograms["sentence_tokens"], powers),
            (f"how full a row of {card['seq_length']} is, from", histograms["row_fill_sixteenths"], sixteenths),
        )
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head><body>
<h1>{title}</h1>
<table>{"".join(f"<tr><td>{html.escape(name)}</td><td class=n>{count:,}</td></tr>" for name, count in totals)}</table>
<h2>Sources</h2>
<table><tr><th>source</th><th>documents kept</th><th>MB</th><th>licence of the text</th></tr>{sources}</table>
<h2>Lengths</h2>
<div class="plots">{plots}</div>
<h2>Build</h2>
<table>{"".join(f"<tr><td>{name}</td><td>{html.escape(value)}</td></tr>" for name, value in facts)}</table>
</body></html>
"""


def _bars(title: str, counts: list[int], labels: list[str]) -> str:
    """A bar chart as SVG, without anything in it that changes from one run to the next."""
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
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]
