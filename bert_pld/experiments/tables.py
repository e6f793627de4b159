"""A comparison's figures as the Markdown of docs/, between two marks that a test checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BEGIN, END = "<!-- table of {name}: begin -->", "<!-- table of {name}: end -->"


def figure(value: dict[str, Any] | None, digits: int) -> str:
    """`1.234 ± 0.005`; without the deviation where there is one run alone."""
    if value is None:
        return "–"
    mean = f"{value['mean']:.{digits}f}"
    return f"{mean} ± {value['deviation']:.{digits}f}" if value["n"] > 1 else mean


def table(comparison: dict[str, Any]) -> str:
    """Markdown of the comparison, one row a variant."""
    lines = [
        "| | held-out loss, equal samples | held-out loss, equal time | kept blocks | time a sample | FLOPs a sample"
        " | to Post-LN's loss | runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in comparison["rows"]:
        runs = (row["loss_at_equal_samples"] or {"n": 0})["n"]
        speed = figure(row["speedup_to_baseline_loss"], 2)
        if row["speedup_to_baseline_loss"] is not None:
            speed += " ×"
            speed += f" ({row['reached_baseline_loss']} of {runs})" if row["reached_baseline_loss"] < runs else ""
        cells = [
            row["label"],
            figure(row["loss_at_equal_samples"], 3),
            figure(row["loss_at_equal_time"], 3),
            figure(row["kept_blocks"], 2),
            figure(row["time_a_sample"], 3),
            figure(row["flops_a_sample"], 3),
            speed,
            f"{runs}" + (f", {row['diverged']} diverged" if row["diverged"] else ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def put_into(page: Path, name: str, text: str) -> None:
    """Replace what stands between a page's two marks of `name`.

    Raises:
        ValueError: the page lacks them.
    """
    content = page.read_text(encoding="utf-8")
    page.write_text(_split(content, page, name, text), encoding="utf-8")


def found_in(page: Path, name: str) -> str:
    """What stands between a page's two marks of `name`.

    Raises:
        ValueError: the page lacks them.
    """
    content = page.read_text(encoding="utf-8")
    begin, end = _positions(content, page, name)
    return content[begin:end].strip("\n") + "\n"


def _split(content: str, page: Path, name: str, text: str) -> str:
    begin, end = _positions(content, page, name)
    return f"{content[:begin]}\n{text}{content[end:]}"


def _positions(content: str, page: Path, name: str) -> tuple[int, int]:
    begin, end = BEGIN.format(name=name), END.format(name=name)
    if begin not in content or end not in content:
        raise ValueError(f"{page}: lacks the lines {begin} and {end}")
    return content.index(begin) + len(begin), content.index(end)
