"""One table over tasks: per task the learning rate that is best on dev, and there the mean and spread over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_pld.glue.metrics import mean_score
from bert_pld.glue.results import RESULT
from bert_pld.glue.tasks import TASKS, Task

_SHORT = {"accuracy": "acc", "f1": "F1", "matthews": "Mcc", "pearson": "P", "spearman": "S"}


def summarize(output_dir: Path) -> dict[str, Any]:
    """Figures of all fine-tunings below a folder.

    The learning rate with the best mean over seeds (of the mean over metrics and dev splits) is a task's, of the rates
    that have been tried with most seeds; `mean` is the mean over tasks of the latter, WNLI left out as in the paper's
    table.

    Raises:
        ValueError: there are none.
    """
    tasks = {}
    for name, task in TASKS.items():
        results = [json.loads(path.read_text(encoding="utf-8")) for path in output_dir.glob(f"{name}/*/{RESULT}")]
        if results:
            tasks[name] = _of_task(task, results)
    if not tasks:
        raise ValueError(f"{output_dir}: holds no results of fine-tuning")
    counted = [value["score"]["mean"] for name, value in tasks.items() if name != "WNLI"]
    return {"tasks": tasks, "mean": statistics.fmean(counted) if counted else None}


def _of_task(task: Task, results: list[dict[str, Any]]) -> dict[str, Any]:
    by_rate: dict[float, list[dict[str, Any]]] = {}
    for result in results:
        by_rate.setdefault(result["conditions"]["learning_rate"], []).append(result)
    rates = {rate: statistics.fmean(map(_score, runs)) for rate, runs in by_rate.items()}
    most = max(map(len, by_rate.values()))
    best = max((rate for rate, runs in by_rate.items() if len(runs) == most), key=lambda rate: rates[rate])
    runs = by_rate[best]
    figures = {
        f"{split.name}/{metric}": _spread([run["dev"][split.name][metric] for run in runs])
        for split in task.dev
        for metric in task.metrics
    }
    return {
        "learning_rate": best,
        "mean_by_learning_rate": {f"{rate:g}": value for rate, value in sorted(rates.items())},
        "score": _spread([_score(run) for run in runs]),
        "metrics": figures,
        "seeds": sorted(run["conditions"]["seed"] for run in runs),
        "conditions": _shared([run["conditions"] for run in runs]),
        "versions": _shared([run.get("versions", {}) for run in runs]),
    }


def _shared(dictionaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is the same in all; without the model, which the table names, rate and seed."""
    first, *others = dictionaries
    left_out = ("model", "learning_rate", "seed")
    same = {key for key, value in first.items() if all(other.get(key) == value for other in others)}
    return {key: value for key, value in first.items() if key in same and key not in left_out}


def _score(result: dict[str, Any]) -> float:
    return statistics.fmean(mean_score(scores) for scores in result["dev"].values())


def _spread(values: Sequence[float]) -> dict[str, float | int]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "n": len(values)}


def table(summaries: dict[str, dict[str, Any]]) -> str:
    """Markdown: a model a row, a task a column, `mean ± sample standard deviation` of the dev scores × 100.

    Args:
        summaries: a model's name → what `summarize` gave. Without the same tasks in all there is no mean over tasks.
    """
    names = [name for name in TASKS if any(name in summary["tasks"] for summary in summaries.values())]
    heads = [f"{name} {'/'.join(_SHORT[m] for m in TASKS[name].metrics)}" for name in names]
    heads = [head.replace("MNLI acc", "MNLI m/mm") for head in heads]
    lines = [f"| | {' | '.join(heads)} | mean |", "|---" * (len(names) + 2) + "|"]
    for model, summary in summaries.items():
        cells = [_cell(summary["tasks"].get(name)) for name in names]
        comparable = all(summary["tasks"].keys() == other["tasks"].keys() for other in summaries.values())
        mean = f"{summary['mean']:.1f}" if comparable and summary["mean"] is not None else "–"
        lines.append(f"| {model} | {' | '.join(cells)} | {mean} |")
    return "\n".join(lines) + "\n"


def _cell(task: dict[str, Any] | None) -> str:
    if task is None:
        return "–"
    figures = [
        f"{value['mean']:.1f}" + (f" ± {value['deviation']:.1f}" if value["n"] > 1 else "")
        for value in task["metrics"].values()
    ]
    return " / ".join(figures)
