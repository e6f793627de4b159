"""The comparison's pictures: held-out loss against samples and against time, every seed thin and the means thick."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from bert_pld.experiments.curves import Curve
from bert_pld.experiments.variants import VARIANTS
from bert_pld.plot import COLOURS


def draw(curves: Mapping[str, Mapping[int, Curve]], output: Path, title: str) -> None:
    """Draw both pictures side by side.

    Args:
        curves: variant → seed → run.
        output: .png, .svg or .pdf.
        title: the conditions, in one line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    by_samples, by_time = figure.subplots(1, 2, sharey=True)
    for variant, colour in zip(VARIANTS, (*COLOURS, "#999999"), strict=True):
        seeds = [curve for curve in curves.get(variant.name, {}).values() if not curve.diverged]
        if not seeds:
            continue
        style = "-" if variant.is_main else "--"
        for curve in seeds if len(seeds) > 1 else ():
            by_samples.plot(curve.samples, curve.loss, style, color=colour, linewidth=0.6, alpha=0.5)
            by_time.plot([t / 60 for t in curve.seconds], curve.loss, style, color=colour, linewidth=0.6, alpha=0.5)
        loss = [statistics.fmean(values) for values in zip(*(curve.loss for curve in seeds), strict=True)]
        time = [statistics.fmean(values) / 60 for values in zip(*(curve.seconds for curve in seeds), strict=True)]
        by_samples.plot(seeds[0].samples, loss, style, color=colour, linewidth=1.8, label=variant.label)
        by_time.plot(time, loss, style, color=colour, linewidth=1.8)
    by_samples.set(xlabel="sequences", ylabel="held-out MLM loss (nats)")
    by_time.set(xlabel="minutes of training")
    for axes in (by_samples, by_time):
        axes.grid(alpha=0.25)
    by_samples.legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=9)
    figure.savefig(output, dpi=130)
