"""Compare a PLD run with its baseline: held-out loss at the same samples, and time per sample against the prediction.

python scripts/compare_runs.py PLD_RUN BASELINE_RUN

Time per sample is taken over the constant part of the schedule (θ within 1 % of its limit), from the same steps of both
runs; evaluations and checkpoints are not in it. The prediction is the ratio of matrix-product FLOPs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bert_pld.config import RunConfig, load_config
from bert_pld.model import ModelFlops
from bert_pld.pld.engine import make_schedule


def read_run(run_dir: Path) -> tuple[RunConfig, list[dict[str, Any]], dict[str, Any]]:
    """A run's configuration, its logging records, and its last evaluation."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    evaluations = [record for record in records if "eval_mlm_loss" in record]
    return load_config(run_dir / "config.json"), [r for r in records if "loss" in r], evaluations[-1]


def seconds_per_sample(records: list[dict[str, Any]]) -> float:
    """Between the first and the last of these records."""
    first, last = records[0], records[-1]
    return (last["seconds"] - first["seconds"]) / (last["samples"] - first["samples"])


def main(pld_dir: Path, baseline_dir: Path) -> None:
    """Print the comparison."""
    config, records, evaluation = read_run(pld_dir)
    _, baseline_records, baseline_evaluation = read_run(baseline_dir)
    assert evaluation["samples"] == baseline_evaluation["samples"], "the runs differ in their number of samples"
    schedule = make_schedule(config.progressive_layer_drop, config.model.num_layers)
    constant_from = schedule.steps_until_theta_within(0.01)
    constant, baseline = ([r for r in rs if r["step"] >= constant_from] for rs in (records, baseline_records))
    flops = ModelFlops(config.model, config.data.seq_length, config.data.mask_probability)
    predicted = flops.ratio(schedule.expected_depth(10**9))
    drawn = flops.ratio(sum(r["kept_blocks"] for r in constant[1:]) / len(constant[1:]))
    measured = seconds_per_sample(constant) / seconds_per_sample(baseline)
    loss, baseline_loss = evaluation["eval_mlm_loss"], baseline_evaluation["eval_mlm_loss"]
    print(f"{'':34}{'PLD':>10}{'without':>10}{'ratio':>8}")
    print(f"{'held-out MLM loss, nats':34}{loss:10.4f}{baseline_loss:10.4f}{loss / baseline_loss:8.3f}")
    whole = records[-1]["seconds"], baseline_records[-1]["seconds"]
    print(f"{'training, seconds':34}{whole[0]:10.1f}{whole[1]:10.1f}{whole[0] / whole[1]:8.3f}")
    milliseconds = [1000 * seconds_per_sample(part) for part in (constant, baseline)]
    print(f"{'ms a sample, constant θ':34}{milliseconds[0]:10.2f}{milliseconds[1]:10.2f}{measured:8.3f}")
    print(f"{'   predicted from FLOPs':34}{'':20}{predicted:8.3f}   (of the gates drawn: {drawn:.3f})")
    print(f"{'   measured over predicted':34}{'':20}{measured / predicted:8.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
