"""The figures of a tagging task over learning rates and seeds."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from bert_pld.files import write_atomically
from bert_pld.finetuning.sweep import scored_rates
from bert_pld.tagging.task import TaggingTask


def write_summary(output_dir: Path, task: TaggingTask, results: list[dict[str, Any]]) -> str:
    """Write `summary.json` and return it as text; the rate with the best mean on dev over seeds counts.

    Figures are means over seeds with the sample standard deviation.
    """
    rates = scored_rates(results)
    if not rates:
        return f"{task.name}: every learning rate diverged\n"
    best = max(rates, key=lambda rate: statistics.fmean(task.selection(run["dev"]["dev"]) for run in rates[rate]))
    runs, lines, splits = rates[best], [], {}
    for kind in ("dev", "test"):
        for split in runs[0].get(kind, {}):
            figures = {}
            for name in runs[0][kind][split]:
                values = [run[kind][split][name] for run in runs]
                deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                figures[name] = {"mean": statistics.fmean(values), "deviation": deviation, "n": len(values)}
            splits[split] = figures
            shown = ", ".join(f"{name} {one['mean']:.2f} ± {one['deviation']:.2f}" for name, one in figures.items())
            lines.append(f"{task.name} {split}: {shown} ({len(runs)} seed(s), lr {best:g})\n")
    summary = {"task": task.name, "tags": list(task.tags), "learning_rate": best, "splits": splits}
    write_atomically(output_dir / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return "".join(lines)
