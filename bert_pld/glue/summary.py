"""One table over tasks: per task the learning rate that is best on dev, and there the mean and spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bert_pld.glue.divergence import by_learning_rate, diverged, scored_rates
from bert_pld.glue.metrics import mean_score
from bert_pld.glue.results import RESULT, read_result
from bert_pld.glue.tasks import TASKS, Task

_SHORT = {"accuracy": "acc", "f1": "F1", "matthews": "Mcc", "pearson": "P", "spearman": "S"}


def summarize(output_dir: Path) -> dict[str, Any]:
    """Figures of all fine-tunings below a folder.

    The learning rate with the best mean over seeds (of the mean over metrics and dev splits) is a task's, of the rates
    that have been tried with most seeds and diverged with none; `mean` is the mean over tasks of the latter, WNLI left
    out as in the paper's table. A task of which each rate diverged has no `score`, and there is no `mean`.

    Raises:
        ValueError: there are none, or one is damaged; names it.
    """
    tasks = {}
    for name, task in TASKS.items():
        results = [read_result(path) for path in sorted(output_dir.glob(f"{name}/*/{RESULT}"))]
        if results:
            tasks[name] = _of_task(task, results)
    if not tasks:
        raise ValueError(f"{output_dir}: holds no results of fine-tuning")
    scores = [value["score"] for name, value in tasks.items() if name != "WNLI"]
    whole = scores and None not in scores
    return {"tasks": tasks, "mean": statistics.fmean(score["mean"] for score in scores) if whole else None}


def _of_task(task: Task, results: list[dict[str, Any]]) -> dict[str, Any]:
    scored = scored_rates(results)
    rates = {rate: statistics.fmean(map(_score, runs)) for rate, runs in scored.items()}
    most = max(map(len, scored.values()), default=0)
    best = max((rate for rate, runs in scored.items() if len(runs) == most), key=lambda rate: rates[rate], default=None)
    runs = [] if best is None else scored[best]
    figures = {
        f"{split.name}/{metric}": _spread([run["dev"][split.name][metric] for run in runs])
        for split in task.dev
        for metric in task.metrics
        if runs
    }
    without = {f"{rate:g}": _seeds(filter(diverged, of)) for rate, of in sorted(by_learning_rate(results).items())}
    return {
        "learning_rate": best,
        "mean_by_learning_rate": {f"{rate:g}": value for rate, value in sorted(rates.items())},
        "score": _spread([_score(run) for run in runs]) if runs else None,
        "metrics": figures,
        "seeds": _seeds(runs),
        "fine_tunings": len(results),
        "diverged": {rate: seeds for rate, seeds in without.items() if seeds},
        "conditions": _shared([run["conditions"] for run in runs or results]),
        "versions": _shared([run.get("versions", {}) for run in runs or results]),
    }


def _seeds(results: Iterable[dict[str, Any]]) -> list[int]:
    return sorted(result["conditions"]["seed"] for result in results)


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

    Fine-tunings of a task that diverged, at whatever learning rate, are counted in its cell.

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
    count = sum(map(len, task.get("diverged", {}).values()))
    note = f" ({count} of {task['fine_tunings']} diverged)" if count else ""
    return (" / ".join(figures) or "–") + note
