"""Dev scores of several models side by side: a dot a model, the mean over seeds, and a bar for the spread."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bert_pld.glue.tasks import TASKS


def draw(summaries: dict[str, dict[str, Any]], output: Path) -> None:
    """Draw one panel a task.

    Args:
        summaries: a model's name → what `summarize` gave.
        output: .png, .svg or .pdf.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in TASKS if any(name in summary["tasks"] for summary in summaries.values())]
    figure = Figure(figsize=(2.6 * len(names) + 1, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for place, (model, summary) in enumerate(summaries.items()):
            if name in summary["tasks"]:
                score = summary["tasks"][name]["score"] or {"mean": math.nan, "deviation": math.nan}
                axes.errorbar(
                    place, score["mean"], score["deviation"], fmt="o", color=f"C{place}", capsize=4, label=model
                )
        axes.set(title=name, xticks=[], xlim=(-0.6, len(summaries) - 0.4))
        axes.grid(axis="y", alpha=0.25)
    panels[0].set(ylabel="dev score × 100")
    panels[0].legend(fontsize=7, frameon=False)
    figure.savefig(output, dpi=130)
