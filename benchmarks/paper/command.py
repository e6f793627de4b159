"""The paper's comparison: train its variants on the same samples at a scale of configs/scales/, and compare them."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import REPOSITORY
from benchmarks.machine import processor_name
from benchmarks.paper.variants import BASELINE, CHOICES, RECIPE, VARIANTS, load_scale
from bert_pld.config import read_json

CONDITIONS = "conditions.json"
EXAMPLE = "python -m benchmarks paper run --scale cpu --data_dir shards/ --output_dir runs/paper --seeds 3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands `run` and `summarize`, each with its options."""
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="train the runs that are not finished")
    add = runs.add_argument
    add("--scale", required=True, help="name of a file of configs/scales/, without .json")
    add("--data_dir", required=True, type=Path, help="shards of `data_prep build`")
    add("--output_dir", required=True, type=Path, help="a folder for all runs")
    add("--seeds", type=int, default=3, help="(default 3); ablations have 1, unless --variants names them")
    paper, others = (", ".join(variant.name for variant in group) for group in (VARIANTS, CHOICES + RECIPE))
    add("--variants", nargs="+", metavar="NAME", help=f"names of {paper} (default: all of these), or of {others}")
    add("--at_once", type=int, help="concurrent runs (default: one a GPU; without a GPU, one a processor)")
    summary = commands.add_parser("summarize", help="compute the figures of the finished runs")
    add = summary.add_argument
    add("output_dir", type=Path, help="the --output_dir of `run`")
    add("--json", type=Path, required=True, help="file to write the figures to")
    add("--plot", type=Path, help="file for the curves: .png, .svg or .pdf")
    add("--time_plot", type=Path, help="file for the loss of the main variants against time")
    add("--baseline", default=BASELINE, help=f"variant to compare with (default {BASELINE})")


def main(options: argparse.Namespace) -> int:
    """Run or summarize; return 1 if a run failed."""
    return _run(options) if options.command == "run" else _summarize(options)


def _run(options: argparse.Namespace) -> int:
    import torch

    from benchmarks.paper.suite import Suite, plan_jobs
    from bert_pld.config import load_config

    if options.seeds < 1 or (options.at_once is not None and options.at_once < 1):
        raise ValueError("--seeds, --at_once: must be at least 1")
    gpus, processors = _visible_gpus(torch.cuda.device_count()), len(os.sched_getaffinity(0))
    at_once = options.at_once or len(gpus) or processors
    if gpus and at_once > len(gpus):
        raise ValueError(f"--at_once {at_once}: must be at most {len(gpus)}, as each run needs a GPU")
    jobs = plan_jobs(load_scale(options.scale), options.output_dir, options.seeds, options.variants)
    for job in jobs:
        load_config(job.config).batch_sizes(world_size=1)
    described = describe(options, jobs[0].config["data"]["seq_length"], len(gpus), at_once)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    record_conditions(options.output_dir / CONDITIONS, described)
    threads = max(1, processors // at_once)
    failures = Suite(options.data_dir, at_once, threads, gpus or None).run(jobs)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _visible_gpus(count: int) -> list[str]:
    """Names of the GPUs, one for each run."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (visible or [str(index) for index in range(count)])[:count]


def record_conditions(path: Path, described: dict[str, Any]) -> None:
    """Write the conditions of a suite; if it is continued, add those that have changed.

    Raise ValueError if it was started at another scale, on another type of device or on other data.
    """
    from bert_pld.files import write_json

    before = read_json(path) if path.exists() else dict(described)
    for key in ("scale", "device", "data"):
        if before[key] != described[key]:
            changed = f"was started with {key} {before[key]}, now {described[key]}"
            raise ValueError(f"{path.parent}: {changed}; use another --output_dir")
    now = {key: described[key] for key in ("commit", "command", "hardware", "versions", "runs_at_once")}
    later = before.setdefault("later", [])
    if now not in later and any(before[key] != value for key, value in now.items()):
        later.append(now)
    write_json(path, before)


def describe(options: argparse.Namespace, seq_length: int, gpus: int, at_once: int) -> dict[str, Any]:
    """Hardware, versions, commit and command, for the file of results."""
    import deepspeed
    import torch

    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "deepspeed": deepspeed.__version__}
    return {
        "device": "gpu" if gpus else "cpu",
        "hardware": torch.cuda.get_device_name(0) if gpus else processor_name(),
        "processors": len(os.sched_getaffinity(0)),
        "runs_at_once": at_once,
        "versions": versions,
        "commit": commit or "unknown",
        "data": describe_data(options.data_dir, seq_length),
        "scale": options.scale,
        "command": f"python -m benchmarks paper run --scale {options.scale} --seeds {options.seeds}"
        + (f" --variants {' '.join(options.variants)}" if options.variants else ""),
    }


def describe_data(data_dir: Path, seq_length: int) -> dict[str, Any]:
    """Rows, vocabulary and fingerprint of the training data."""
    from bert_pld.data.rows import resolve_data_dir
    from bert_pld.data.shards import Manifest

    manifest = Manifest.read(resolve_data_dir(data_dir, seq_length))
    return {
        "training_rows": manifest.rows("train"),
        "held_out_rows": manifest.rows("validation"),
        "seq_length": manifest.attributes.seq_length,
        "vocabulary_size": manifest.attributes.vocabulary_size,
        "fingerprint": manifest.fingerprint(),
    }


def _summarize(options: argparse.Namespace) -> int:
    from benchmarks.paper.claims import check_claims, claims_table
    from benchmarks.paper.comparison import compare
    from benchmarks.paper.curves import CLOCKS, read_curve
    from benchmarks.paper.drawing import draw, draw_time
    from benchmarks.paper.suite import finished_runs
    from benchmarks.paper.tables import recipe_table, table
    from bert_pld.cli import check_figure_file, check_output_file
    from bert_pld.files import write_json

    check_output_file("--json", options.json, "nothing was written")
    for name in ("plot", "time_plot"):
        check_figure_file(f"--{name}", getattr(options, name), "nothing was written")
    path = options.output_dir / CONDITIONS
    if not path.exists():
        raise ValueError(f"{options.output_dir}: has no {CONDITIONS}; must be the --output_dir of `run`")
    conditions = read_json(path)
    if conditions.get("device") not in CLOCKS:
        raise ValueError(f"{path}: device: {conditions.get('device')!r}; must be one of {', '.join(CLOCKS)}")
    clock = CLOCKS[conditions["device"]]
    curves = {
        name: {seed: read_curve(run_dir, clock) for seed, run_dir in seeds.items()}
        for name, seeds in finished_runs(options.output_dir).items()
    }
    comparison = compare(curves, options.baseline)
    runs = {name: {str(seed): curve.as_json() for seed, curve in seeds.items()} for name, seeds in curves.items()}
    claims = check_claims(curves)
    result = {"conditions": conditions, "clock": clock, "comparison": comparison, "claims": claims, "runs": runs}
    write_json(options.json, result, indent=1)
    of_recipe = all(row["group"] == "recipe" for row in comparison["rows"])
    figures = recipe_table(comparison) if of_recipe else table(comparison, "paper", "choices", "recipe")
    print(figures, claims_table(claims), sep="\n", end="")
    title = f"{conditions['hardware']}, scale {conditions['scale']}, {conditions['commit']}"
    if options.plot is not None:
        draw(curves, options.plot, title)
    if options.time_plot is not None:
        draw_time(curves, options.time_plot, title)
    return 0
