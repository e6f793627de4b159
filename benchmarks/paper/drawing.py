"""Figures of the comparison: held-out loss against samples and against time, executed blocks and θ."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.curves import Curve
from benchmarks.paper.variants import FIRST_PAGE, KNOWN, VARIANTS
from bert_pld.plot import COLOURS

_COLOURS = dict(zip((variant.name for variant in VARIANTS), (*COLOURS, "#999999", "#7F3C8D"), strict=True))
_COLOURS |= {"keep_first_block": "#B03A2E", "keep_first_block_sample": "#F1948A"}
for name, colour in (("dense", "#222222"), ("tokens", "#C0392B")):
    _COLOURS |= dict.fromkeys((name, f"{name}_muon", f"{name}_equal_compute", f"{name}_muon_equal_compute"), colour)
_COLOURS |= {"recipe_post_ln": "#1F77B4", "recipe_pre_ln": "#2E8B57", "tokens_every_4_muon": "#E08214"}
_COLOURS |= {"tokens_near_muon": "#1B9E77", "tokens_near_40_muon": "#E6AB02", "tokens_same_40_muon": "#1F77B4"}
_COLOURS |= {"tokens_first_muon": "#7F3C8D", "dense_muon_equal_compute_first": "#888888"}
_COLOURS |= {"dense_muon_equal_time": "#17BECF"}
_THETA_COLOUR = "#1F77B4"
_HIDDEN_SHARE = 0.1
"""Share of a run that is not drawn: the steep fall of the loss at first would flatten the rest."""


def draw(curves: Mapping[str, Mapping[int, Curve]], output: Path, title: str) -> None:
    """Draw the three figures side by side: losses of every seed (thin) and their mean (thick), depth of one seed.

    `curves` has variant → seed → run; only the paper's variants, those of `FIRST_PAGE` and the recipe's are drawn.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5), layout="constrained")
    by_samples, by_time, depth = figure.subplots(1, 3)
    by_time.sharey(by_samples)
    for variant in KNOWN:
        seeds = [curve for curve in curves.get(variant.name, {}).values() if not curve.diverged]
        if seeds and variant.name in _COLOURS:
            style = "-" if variant.name in FIRST_PAGE or variant.name.endswith("_muon") else "--"
            style = ":" if variant.equal_compute_to or variant.equal_time else style
            colour = _COLOURS[variant.name]
            _draw_means(by_samples, [curve.samples for curve in seeds], seeds, variant.label, style, colour)
            _draw_against_minutes(by_time, seeds, variant.label, style, colour)
            depth.plot(seeds[0].logged_samples, seeds[0].depth, style, color=colour, linewidth=1.0, alpha=0.8)
    by_samples.set(xlabel="sequences", ylabel="held-out MLM loss (nats)")
    by_time.set(xlabel="minutes of training")
    depth.set(xlabel="sequences", ylabel="executed blocks")
    right = depth.twinx()
    progressive = next((c for seeds in curves.values() for c in seeds.values() if len(set(c.theta)) > 1), None)
    if progressive is not None:
        right.plot(progressive.logged_samples, progressive.theta, "-.", color=_THETA_COLOUR, linewidth=1.2)
        right.set(ylim=(0, 1.05))
        right.set_ylabel("θ over time (dash-dotted)", color=_THETA_COLOUR)
    for axes in (by_samples, by_time, depth):
        axes.grid(alpha=0.25)
        axes.locator_params(axis="x", nbins=5)
    lines = by_samples.get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=9)
    figure.savefig(output, dpi=130)


def draw_time(curves: Mapping[str, Mapping[int, Curve]], output: Path, title: str) -> None:
    """Draw the loss of the variants of `FIRST_PAGE` against time; arguments as for `draw`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for variant in KNOWN:
        seeds = [curve for curve in curves.get(variant.name, {}).values() if not curve.diverged]
        if seeds and variant.name in FIRST_PAGE:
            _draw_against_minutes(axes, seeds, variant.label, "-", _COLOURS[variant.name])
    axes.set(xlabel="minutes of training", ylabel="held-out MLM loss (nats)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    axes.set_title(title, fontsize=9)
    figure.savefig(output, dpi=130)


def _draw_against_minutes(axes: Any, seeds: list[Curve], label: str, style: str, colour: str) -> None:
    _draw_means(axes, [[t / 60 for t in curve.seconds] for curve in seeds], seeds, label, style, colour)


def _draw_means(
    axes: Any, across: Sequence[Sequence[float]], seeds: list[Curve], label: str, style: str, colour: str
) -> None:
    """Draw each seed (thin) and the mean (thick), without the beginning."""
    first = next(i for i, n in enumerate(seeds[0].samples) if n >= _HIDDEN_SHARE * seeds[0].samples[-1])
    for values, curve in zip(across, seeds, strict=True) if len(seeds) > 1 else ():
        axes.plot(values[first:], curve.loss[first:], style, color=colour, linewidth=0.6, alpha=0.5)
    mean = [statistics.fmean(values) for values in zip(*across, strict=True)]
    loss = [statistics.fmean(values) for values in zip(*(curve.loss for curve in seeds), strict=True)]
    axes.plot(mean[first:], loss[first:], style, color=colour, linewidth=1.8, label=label)
