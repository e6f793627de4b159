"""Curves of finished runs: the clock, FLOPs and executed blocks."""

import json

import pytest
from benchmark_command import measure

from benchmarks.paper.curves import read_curve
from benchmarks.paper.suite import plan_jobs
from benchmarks.paper.variants import load_scale

# Step, samples, seconds of wall-clock time and of processor time, which two threads use.
TIMES = ((2, 20, 10.0, 20.0), (4, 40, 14.0, 28.0), (5, 50, 15.0, 30.0))
# Means over the steps since the previous line.
TFLOPS, KEPT_BLOCKS = (0.5, 0.25, 1.0), (3.0, 2.0, 1.0)
LOSSES = {4: 6.0, 5: 5.5}


@pytest.fixture
def run_dir(tmp_path):
    """A finished run of five steps in the folder of a suite."""
    job = plan_jobs(load_scale("cpu"), tmp_path, 1, ["post_ln"])[0]
    job.config["training"]["max_steps"] = 5
    (job.run_dir / "checkpoints" / "step_00000005").mkdir(parents=True)
    (job.run_dir / "given.json").write_text(json.dumps(job.config))
    lines = []
    for (step, samples, seconds, processor_seconds), tflops, kept in zip(TIMES, TFLOPS, KEPT_BLOCKS, strict=True):
        common = {"step": step, "samples": samples, "seconds": seconds, "processor_seconds": processor_seconds}
        lines.append({**common, "tokens": 7 * samples, "tflops": tflops, "kept_blocks": kept, "theta": 1.0})
        if step in LOSSES:
            lines.append({**common, "eval_mlm_loss": LOSSES[step], "eval_mlm_accuracy": 0.25})
    (job.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return job.run_dir


@pytest.mark.parametrize(
    ("device", "clock", "seconds"), [("cpu", "processor_seconds", [28.0, 30.0]), ("gpu", "seconds", [14.0, 15.0])]
)
def test_runs_use_processor_time_on_a_cpu_and_wall_clock_time_on_a_gpu(device, clock, seconds, run_dir):
    suite_dir = run_dir.parents[1]
    conditions = {"device": device, "hardware": "x", "scale": "cpu", "commit": "y"}
    (suite_dir / "conditions.json").write_text(json.dumps(conditions))
    result = measure(suite_dir, "paper", "summarize", str(suite_dir))
    assert result["clock"] == clock
    assert result["runs"]["post_ln"]["1"]["seconds"] == seconds
    assert result["comparison"]["equal_seconds"] == seconds[-1]


@pytest.mark.parametrize("clock", ["seconds", "processor_seconds"])
def test_flops_use_wall_clock_time_and_kept_blocks_are_the_mean_over_steps(clock, run_dir):
    curve = read_curve(run_dir, clock)
    assert curve.flops == pytest.approx(0.5e12 * 10 + 0.25e12 * (14 - 10) + 1e12 * (15 - 14))
    assert curve.kept_blocks == pytest.approx((2 * 3.0 + 2 * 2.0 + 1 * 1.0) / 5)
    assert (curve.samples, curve.loss, curve.accuracy) == ([40, 50], [6.0, 5.5], [0.25, 0.25])
    assert (curve.tokens, curve.logged_samples, curve.depth) == (350, [20, 40, 50], [3.0, 2.0, 1.0])
