"""Tables and a plot of dev scores: mean and spread over seeds, and Welch confidence intervals for score differences.

A task's score is the mean over its metrics and dev splits, at the learning rate that is best on the dev set.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_pld.files import write_atomically, write_json
from bert_pld.finetuning.sweep import RESULT, DamagedResultError, by_learning_rate, diverged, read_result, scored_rates
from bert_pld.glue.tasks import TASKS, Task, mean_score

SUMMARY = "summary"
"""Name of the summary's files in an output folder, without suffix."""
Summaries = Mapping[str, Mapping[str, Any]]
"""Name of a model → the result of `summarize`."""
_SHORT = {"accuracy": "acc", "f1": "F1", "matthews": "Mcc", "pearson": "P", "spearman": "S"}


def summarize(output_dir: Path) -> dict[str, Any]:
    """Return the figures of all fine-tunings below a folder.

    A task's learning rate is the one with the best mean over seeds, among the rates that were run with the most seeds
    and diverged with none. `mean` is the mean over tasks, without WNLI, as in the paper's table. A task that diverged
    at every rate has no `score`; then there is no `mean`.

    Raises:
        ValueError: the folder holds no results, a damaged one, or results of a task with other conditions than learning
            rate and seed that differ; names them.
    """
    tasks = {}
    for name, task in TASKS.items():
        results = {path.parent: read_result(path) for path in sorted(output_dir.glob(f"{name}/*/{RESULT}"))}
        for folder, result in results.items():
            _check_scores(folder / RESULT, task, result)
        if results:
            _check_same_conditions(results)
            tasks[name] = _summarize_task(task, list(results.values()))
    if not tasks:
        raise ValueError(f"{output_dir}: no fine-tuning results found")
    scores = [value["score"] for name, value in tasks.items() if name != "WNLI"]
    is_complete = scores and None not in scores
    return {"tasks": tasks, "mean": statistics.fmean(score["mean"] for score in scores) if is_complete else None}


def _check_scores(path: Path, task: Task, result: Mapping[str, Any]) -> None:
    """Raise an error that names the file unless it has exactly the task's metrics for each dev split, or diverged."""
    if diverged(result):
        return
    found = {
        f"{split}/{metric}": value
        for split, scores in result["dev"].items()
        for metric, value in (scores.items() if isinstance(scores, Mapping) else [("", None)])
    }
    expected = [f"{split.name}/{metric}" for split in task.dev for metric in task.metrics]
    finite = [key for key, value in found.items() if isinstance(value, int | float) and math.isfinite(value)]
    if sorted(finite) != sorted(expected) or len(found) != len(finite):
        raise DamagedResultError(
            f"{path}: must have the numbers {', '.join(expected)} in dev, has {', '.join(finite) or 'none'}; remove the"
            " file and run the same command again"
        )


def _check_same_conditions(results: Mapping[Path, dict[str, Any]]) -> None:
    """Raise a ValueError if results of a task have other models, data or settings, so that a mean has no meaning."""
    (first, one), *others = ((path, result["conditions"]) for path, result in results.items())
    for path, other in others:
        for key in {**one, **other}:
            if key not in ("learning_rate", "seed") and one.get(key) != other.get(key):
                raise ValueError(
                    f"{path}: holds a result with {key} = {other.get(key)!r}, but {first} one with {one.get(key)!r}; a"
                    " folder must have results of one model, data and settings, so move one of them away"
                )


def _summarize_task(task: Task, results: list[dict[str, Any]]) -> dict[str, Any]:
    scored = scored_rates(results)
    rates = {rate: statistics.fmean(map(_score, runs)) for rate, runs in scored.items()}
    most = max(map(len, scored.values()), default=0)
    best = max((rate for rate, runs in scored.items() if len(runs) == most), key=lambda rate: rates[rate], default=None)
    runs = [] if best is None else scored[best]
    metrics = {
        f"{split.name}/{metric}": _spread([run["dev"][split.name][metric] for run in runs])
        for split in task.dev
        for metric in task.metrics
        if runs
    }
    lost = {f"{rate:g}": _seeds(filter(diverged, group)) for rate, group in sorted(by_learning_rate(results).items())}
    return {
        "learning_rate": best,
        "mean_by_learning_rate": {f"{rate:g}": value for rate, value in sorted(rates.items())},
        "score": _spread([_score(run) for run in runs]) if runs else None,
        "metrics": metrics,
        "seeds": _seeds(runs),
        "fine_tunings": len(results),
        "diverged": {rate: seeds for rate, seeds in lost.items() if seeds},
        "conditions": _common([run["conditions"] for run in runs or results]),
        "versions": _common([run.get("versions", {}) for run in runs or results]),
    }


def _seeds(results: Iterable[dict[str, Any]]) -> list[int]:
    return sorted(result["conditions"]["seed"] for result in results)


def _common(dictionaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the items that are the same in all; without model, learning rate and seed, which the table names."""
    first, *others = dictionaries
    left_out = ("model", "learning_rate", "seed")
    same = {key for key, value in first.items() if all(other.get(key) == value for other in others)}
    return {key: value for key, value in first.items() if key in same and key not in left_out}


def _score(result: dict[str, Any]) -> float:
    return statistics.fmean(mean_score(scores) for scores in result["dev"].values())


def _spread(values: Sequence[float]) -> dict[str, float | int]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "n": len(values)}


def write_summary(output_dir: Path) -> str:
    """Write the figures of a folder as JSON and as a Markdown table, and return the table.

    The files are replaced atomically, because jobs that share the folder may write them at the same time.
    """
    summary = summarize(output_dir)
    text = table({output_dir.resolve().name: summary})
    write_json(output_dir / f"{SUMMARY}.json", summary)
    write_atomically(output_dir / f"{SUMMARY}.md", text)
    return text


def _names(summaries: Summaries) -> list[str]:
    """Return the tasks of all models, in the order of the table."""
    return [name for name in TASKS if any(name in summary["tasks"] for summary in summaries.values())]


def table(summaries: Summaries) -> str:
    """Return a Markdown table: models in rows, tasks in columns, `mean ± sample standard deviation` × 100 in cells.

    A cell also says how many fine-tunings of the task diverged, at any learning rate. The last column, the mean over
    tasks, is filled only if all models have the same tasks.
    """
    names = _names(summaries)
    heads = [f"{name} {'/'.join(_SHORT[m] for m in TASKS[name].metrics)}" for name in names]
    heads = [head.replace("MNLI acc", "MNLI m/mm") for head in heads]
    lines = [f"| | {' | '.join(heads)} | mean |", "|---" * (len(names) + 2) + "|"]
    for model, summary in summaries.items():
        cells = [_score_cell(summary["tasks"].get(name)) for name in names]
        comparable = all(summary["tasks"].keys() == other["tasks"].keys() for other in summaries.values())
        mean = f"{summary['mean']:.1f}" if comparable and summary["mean"] is not None else "–"
        lines.append(f"| {model} | {' | '.join(cells)} | {mean} |")
    return "\n".join(lines) + "\n"


def _score_cell(task: dict[str, Any] | None) -> str:
    if task is None:
        return "–"
    figures = [
        f"{value['mean']:.1f}" + (f" ± {value['deviation']:.1f}" if value["n"] > 1 else "")
        for value in task["metrics"].values()
    ]
    count = sum(map(len, task.get("diverged", {}).values()))
    note = f" ({count} of {task['fine_tunings']} diverged)" if count else ""
    return (" / ".join(figures) or "–") + note


def unequal_conditions(summaries: Summaries) -> list[str]:
    """Return a line for each task and condition in which models differ, other than their weights.

    Scores on other dev sets, or after other fine-tuning, do not compare.
    """
    lines = []
    for name in _names(summaries):
        tasks = {model: summary["tasks"][name] for model, summary in summaries.items() if name in summary["tasks"]}
        conditions = {model: task.get("conditions", {}) for model, task in tasks.items()}
        for key in dict.fromkeys(key for one in conditions.values() for key in one):
            values = {model: one.get(key) for model, one in conditions.items()}
            if key not in ("weights", "from_scratch") and len({json.dumps(value) for value in values.values()}) > 1:
                listed = ", ".join(f"{value} ({model})" for model, value in values.items())
                lines.append(f"{name}: {key} differs: {listed}; the scores do not compare")
    return lines


def difference(first: Mapping[str, Any], second: Mapping[str, Any], confidence: float = 0.95) -> tuple[float, ...]:
    """Return the difference of two mean scores and its Welch confidence interval (Welch, Biometrika 34, 1947).

    Each score has `mean`, `deviation` (of the sample) and `n`. The result is (difference, low, high), or only the
    difference if one of the two has a single seed. The formula is written out because a summary has means and
    deviations only, and SciPy's `ttest_ind` computes an interval only from the samples.
    """
    from scipy.stats import t

    value = first["mean"] - second["mean"]
    if min(first["n"], second["n"]) < 2:
        return (value,)
    variances = [one["deviation"] ** 2 / one["n"] for one in (first, second)]
    total = sum(variances)
    if total == 0:
        return (value, value, value)
    parts = sum(v**2 / (one["n"] - 1) for v, one in zip(variances, (first, second), strict=True))
    half = float(t.ppf((1 + confidence) / 2, total**2 / parts)) * math.sqrt(total)
    return (value, value - half, value + half)


def differences_table(summaries: Summaries) -> str:
    """Return a Markdown table of score differences with 95 % intervals; an empty text for a single model.

    Pairs of models are in rows, tasks in columns; a difference whose interval excludes 0 is bold. The intervals are not
    corrected for the number of comparisons.
    """
    names = _names(summaries)
    lines = [f"| difference, 95 % | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for first, second in itertools.combinations(summaries, 2):
        tasks = (summaries[first]["tasks"], summaries[second]["tasks"])
        cells = [_difference_cell(*(of_model.get(name) for of_model in tasks)) for name in names]
        lines.append(f"| {first} − {second} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _difference_cell(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> str:
    if first is None or second is None or first["score"] is None or second["score"] is None:
        return "–"
    value, *ends = difference(first["score"], second["score"])
    if not ends:
        return f"{value:+.1f}"
    text = f"{value:+.1f} ({ends[0]:+.1f} … {ends[1]:+.1f})"
    return f"**{text}**" if ends[0] > 0 or ends[1] < 0 else text


def draw(summaries: Summaries, output: Path) -> None:
    """Plot the scores: one panel per task, one dot per model, bars for the standard deviation over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = _names(summaries)
    figure = Figure(figsize=(2.6 * len(names) + 1, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for place, (model, summary) in enumerate(summaries.items()):
            if name in summary["tasks"]:
                score = summary["tasks"][name]["score"] or {"mean": math.nan, "deviation": math.nan}
                style = {"fmt": "o", "color": f"C{place}", "capsize": 4, "label": model}
                axes.errorbar(place, score["mean"], score["deviation"], **style)
        axes.set(title=name, xticks=[], xlim=(-0.6, len(summaries) - 0.4))
        axes.grid(axis="y", alpha=0.25)
    panels[0].set(ylabel="dev score × 100")
    for text in panels[0].legend(fontsize=7, frameon=False).get_texts():
        text.set_parse_math(False)  # A dollar sign in a folder's name is no formula.
    figure.savefig(output, dpi=130)
