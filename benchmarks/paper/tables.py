"""A comparison's figures as Markdown tables, and tables between two markers of a page of docs/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.markdown import markdown_table
from benchmarks.paper.variants import FIRST_PAGE

_BEGIN, _END = "<!-- table of {name}: begin -->", "<!-- table of {name}: end -->"


def figure(value: dict[str, Any] | None, digits: int) -> str:
    """`1.234 ± 0.005`; for a single run without the deviation."""
    if value is None:
        return "–"
    mean = f"{value['mean']:.{digits}f}"
    return f"{mean} ± {value['deviation']:.{digits}f}" if value["n"] > 1 else mean


def table(comparison: dict[str, Any], *groups: str) -> str:
    """Format the comparison, a row for each variant of the groups (default: `paper`)."""
    losses = ("held-out loss, equal samples", "held-out loss, equal time")
    header = ("", *losses, "kept blocks", "time a sample", "FLOPs a sample", _to_baseline(comparison), "runs")
    rows = [
        (
            row["label"],
            figure(_loss_at_equal_samples(comparison, row), 3),
            _figure_of_runs(row, "loss_at_equal_time", 3),
            figure(row["kept_blocks"], 2),
            _ratio(comparison, row, "time_a_sample", 3),
            _ratio(comparison, row, "flops_a_sample", 3),
            _speed(comparison, row),
            _runs_and_diverged(row),
        )
        for row in comparison["rows"]
        if row["group"] in (groups or ("paper",))
    ]
    return markdown_table(header, rows)


def recipe_table(comparison: dict[str, Any]) -> str:
    """Format the recipe's comparison, whose runs differ in their number of samples."""
    header = ("", "sequences", "last held-out loss", "kept blocks", "time", "FLOPs", _to_baseline(comparison), "runs")
    rows = [
        (
            row["label"],
            f"{row['samples']['mean']:,.0f}",
            figure(row["loss_at_equal_samples"], 3),
            figure(row["kept_blocks"], 2),
            _ratio(comparison, row, "time_of_run", 3),
            _ratio(comparison, row, "flops_of_run", 3),
            _speed(comparison, row),
            _runs_and_diverged(row),
        )
        for row in comparison["rows"]
        if row["group"] == "recipe" and _runs(row)
    ]
    return markdown_table(header, rows)


def short_table(comparison: dict[str, Any]) -> str:
    """Format the README's table: five columns, the finished variants of `FIRST_PAGE`."""
    losses = ("held-out loss, equal samples", "held-out loss, equal time")
    rows = [
        (
            row["label"],
            figure(_loss_at_equal_samples(comparison, row), 3),
            _figure_of_runs(row, "loss_at_equal_time", 3),
            _ratio(comparison, row, "time_a_sample", 2),
            _speed(comparison, row),
        )
        for row in comparison["rows"]
        if row["variant"] in FIRST_PAGE and row["loss_at_equal_samples"] is not None
    ]
    return markdown_table(("", *losses, "time a sample", _to_baseline(comparison)), rows)


def choices_table(comparison: dict[str, Any]) -> str:
    """Format the options that a user can choose, beside Pre-LN at the same rate and the paper's PLD."""
    beside = ("pre_ln_high_lr", "pld_batch", "pld_sample")
    costs = ("executed blocks", "FLOPs a sample", "time a sample")
    rows = [
        (
            row["label"],
            figure(row["loss_at_equal_samples"], 3),
            figure(row["kept_blocks"], 2),
            *(_ratio(comparison, row, f"{what}_a_sample", 2) for what in ("flops", "time")),
            _speed(comparison, row),
            f"{_runs(row)}",
        )
        for row in comparison["rows"]
        if _runs(row) and (row["group"] == "choices" or row["variant"] in beside)
    ]
    return markdown_table(("", "held-out loss", *costs, _to_baseline(comparison), "runs"), rows)


def _loss_at_equal_samples(comparison: dict[str, Any], row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the last losses, or None if the runs have another number of samples than the baseline.

    Older files do not state the number; their runs have the baseline's.
    """
    samples = row.get("samples")
    equal = samples is None or (samples["mean"], samples["deviation"]) == (comparison["equal_samples"], 0)
    return row["loss_at_equal_samples"] if equal else None


def _runs(row: dict[str, Any]) -> int:
    """Number of finished runs."""
    return (row["loss_at_equal_samples"] or {"n": 0})["n"]


def _runs_and_diverged(row: dict[str, Any]) -> str:
    return f"{_runs(row)}" + (f", {row['diverged']} diverged" if row["diverged"] else "")


def _figure_of_runs(row: dict[str, Any], key: str, digits: int) -> str:
    """`1.234 ± 0.005 (2 of 3)`: with the number of runs, where it is not that of the whole row."""
    value = row[key]
    return figure(value, digits) + (f" ({value['n']} of {_runs(row)})" if value and value["n"] < _runs(row) else "")


def _ratio(comparison: dict[str, Any], row: dict[str, Any], key: str, digits: int) -> str:
    return "1" if row["variant"] == comparison["baseline"] else _figure_of_runs(row, key, digits)


def _speed(comparison: dict[str, Any], row: dict[str, Any]) -> str:
    """`1.23 × (1 of 2)`: how much sooner the baseline's loss is reached, and by how many of the compared runs.

    The numbers are given if a run did not reach the loss, or was not compared because the baseline lacks its seed.
    """
    if row["variant"] == comparison["baseline"]:
        return "1 ×"
    if row["speedup_to_baseline_loss"] is None:
        return "–"
    reached, compared = row["reached_baseline_loss"], row["loss_over_baseline"]["n"]
    of = f" ({reached} of {compared})" if reached < _runs(row) else ""
    return f"{figure(row['speedup_to_baseline_loss'], 2)} ×{of}"


def _to_baseline(comparison: dict[str, Any]) -> str:
    label = next(row["label"] for row in comparison["rows"] if row["variant"] == comparison["baseline"])
    return f"to {label}'s loss"


def put_into(page: Path, name: str, text: str) -> None:
    """Replace the text between a page's two markers of `name`; raise ValueError if the page lacks them."""
    content = page.read_text(encoding="utf-8")
    begin, end = _positions(content, page, name)
    page.write_text(f"{content[:begin]}\n{text}{content[end:]}", encoding="utf-8")


def found_in(page: Path, name: str) -> str:
    """Return the text between a page's two markers of `name`; raise ValueError if the page lacks them."""
    content = page.read_text(encoding="utf-8")
    begin, end = _positions(content, page, name)
    return content[begin:end].strip("\n") + "\n"


def _positions(content: str, page: Path, name: str) -> tuple[int, int]:
    begin, end = _BEGIN.format(name=name), _END.format(name=name)
    if begin not in content or end not in content:
        raise ValueError(f"{page}: lacks the lines {begin} and {end}")
    return content.index(begin) + len(begin), content.index(end)
