"""Compare a PLD run with its baseline: held-out loss at equal samples, and time a sample against the prediction.

python scripts/measure/compare_runs.py PLD_RUN BASELINE_RUN

Time a sample is measured over the constant part of the schedule (θ within 1 % of its limit), in the same steps of both
runs, without evaluations and checkpoints. The prediction is the ratio of matrix-product FLOPs.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from bert_pld.cli import make_parser, run
from bert_pld.config import load_config
from bert_pld.cost.flops import ModelFlops
from bert_pld.cost.work import mean_work
from bert_pld.pld.engine import make_schedule
from bert_pld.plot import RunCurves, read_run

LOGGED, EVALUATED = ("samples", "seconds", "kept_blocks"), ("samples", "eval_mlm_loss")


def read_complete_run(run_dir: Path) -> RunCurves:
    """Read a run's metrics; raise ValueError if a value that is compared is missing."""
    found = read_run(run_dir)
    if not found.evaluations:
        raise ValueError(f"{run_dir}: has no evaluation; must have at least one (training.eval_interval)")
    for lines, keys in ((found.training, LOGGED), (found.evaluations[-1:], EVALUATED)):
        for line in lines:
            if missing := [key for key in keys if not isinstance(line.get(key), int | float)]:
                raise ValueError(f"{run_dir}/metrics.jsonl, step {line['step']}: {missing[0]} must be a finite number")
    return found


def constant_part(found: RunCurves, run_dir: Path, first_step: int, end_step: int | None) -> list[dict[str, Any]]:
    """Logging steps from `first_step` to `end_step`; raise ValueError for fewer than two, or a stopped clock."""
    end = float("inf") if end_step is None else end_step
    records = [record for record in found.training if first_step <= record["step"] <= end]
    if len(records) < 2 or records[-1]["seconds"] <= records[0]["seconds"]:
        raise ValueError(
            f"{run_dir}: {len(records)} logging step(s) from step {first_step} on with θ within 1 % of its limit;"
            " must be at least 2, with increasing seconds (training.max_steps, training.log_interval)"
        )
    return records


def seconds_per_sample(records: list[dict[str, Any]]) -> float:
    """Seconds a sample between the first and the last of these records."""
    first, last = records[0], records[-1]
    return (last["seconds"] - first["seconds"]) / (last["samples"] - first["samples"])


def main(options: argparse.Namespace) -> None:
    """Print the comparison."""
    pld, baseline = read_complete_run(options.pld_run), read_complete_run(options.baseline_run)
    config = load_config(options.pld_run / "config.json")
    if not config.progressive_layer_drop.enabled:
        raise ValueError(f"{options.pld_run}: drops no layers; the first run must use progressive_layer_drop.enabled")
    evaluation, baseline_evaluation = pld.evaluations[-1], baseline.evaluations[-1]
    if evaluation["samples"] != baseline_evaluation["samples"]:
        raise ValueError(
            f"{options.pld_run}, {options.baseline_run}: last evaluated after {evaluation['samples']} and"
            f" {baseline_evaluation['samples']} samples; must be equally many"
        )
    schedule = make_schedule(config)
    constant_from = schedule.steps_until_theta_within(0.01)
    if constant_from is None:
        raise ValueError(
            f"{options.pld_run}/config.json: progressive_layer_drop: θ never comes within 1 % of its limit and stays"
            " there before the dense finish (gamma, ramp, temporal)"
        )
    constant, baseline_constant = (
        constant_part(run, folder, constant_from, schedule.finish_step)
        for run, folder in ((pld, options.pld_run), (baseline, options.baseline_run))
    )
    flops = ModelFlops(
        config.model, config.data.seq_length, config.data.mean_mask_probability(config.training.max_steps)
    )
    granularity = config.progressive_layer_drop.granularity
    work = mean_work(schedule.limit, 1, granularity, config.data.seq_length)
    predicted = drawn = flops.ratio(work)
    if granularity != "token":
        depth = sum(record["kept_blocks"] for record in constant[1:]) / len(constant[1:])
        drawn = flops.ratio(dataclasses.replace(work, depth=depth, square=depth))
    measured = seconds_per_sample(constant) / seconds_per_sample(baseline_constant)
    loss, baseline_loss = evaluation["eval_mlm_loss"], baseline_evaluation["eval_mlm_loss"]
    print(f"{'':34}{'PLD':>10}{'without':>10}{'ratio':>8}")
    print(f"{'held-out MLM loss, nats':34}{loss:10.4f}{baseline_loss:10.4f}{loss / baseline_loss:8.3f}")
    total = pld.training[-1]["seconds"], baseline.training[-1]["seconds"]
    print(f"{'training, seconds':34}{total[0]:10.1f}{total[1]:10.1f}{total[0] / total[1]:8.3f}")
    milliseconds = [1000 * seconds_per_sample(part) for part in (constant, baseline_constant)]
    print(f"{'ms a sample, constant θ':34}{milliseconds[0]:10.2f}{milliseconds[1]:10.2f}{measured:8.3f}")
    print(f"{'   predicted from FLOPs':34}{'':20}{predicted:8.3f}   (of the gates drawn: {drawn:.3f})")
    print(f"{'   measured over predicted':34}{'':20}{measured / predicted:8.3f}")


def build_parser() -> argparse.ArgumentParser:
    """The command line: two folders of runs."""
    what = "Compare a run with layer dropping and one without: held-out loss, and time a sample."
    example = "python scripts/measure/compare_runs.py runs/pld runs/no_pld"
    parser = make_parser("scripts.measure.compare_runs", what, example)
    parser.add_argument("pld_run", type=Path, metavar="PLD_RUN", help="folder of a run with progressive_layer_drop")
    parser.add_argument("baseline_run", type=Path, metavar="BASELINE_RUN", help="folder of the same run without it")
    return parser


if __name__ == "__main__":
    run(main, build_parser())
