"""Tables of docs/reproducing.md: FLOPs and hours of the paper's run on eight GPUs, from published utilizations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.markdown import markdown_table
from bert_pld.config import load_config
from bert_pld.cost.flops import ModelFlops
from bert_pld.cost.work import BlockWork
from bert_pld.plan import Plan, make_plan

_CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
_RUNS = {
    "without dropping": "paper/pre_ln",
    "PLD": "paper/pld_batch",
    "PLD, first block kept": "choices/keep_first_block",
}
_GPUS = 8
_PEAK_TFLOPS = 989
"""Dense bf16 peak of an H100 SXM."""
_ASSUMED = (0.3, 0.4)


def published(result: dict[str, Any]) -> str:
    """Return the table of published throughput and the utilization that follows from it."""
    rows = [
        [
            f"{one['what']}, {one['precision']}",
            f"{_sequences_per_s(one):,.0f}",
            f"{_flops_per_sequence(one, result) / 1e9:.1f}",
            f"{100 * _utilization(one, result):.0f} %",
            f"[{one['source']}]({one['address']})",
        ]
        for one in result["runs"]
    ]
    return markdown_table(["", "sequences/s", "GFLOP a sequence", "utilization", "source"], rows)


def work() -> str:
    """Return the table of FLOPs of the paper's run: matrix products, forward and backward."""
    plans = _plans()
    return markdown_table(
        ["", *_RUNS],
        [
            ["a sequence, the run's mean", *(f"{plan.flops_mean / 1e9:.1f} GFLOP" for plan in plans)],
            ["the run", *(f"{plan.total_flops / 1e18:.1f} EFLOP" for plan in plans)],
        ],
    )


def hours(result: dict[str, Any]) -> str:
    """Return the table of hours and GPU-hours, at the published utilizations and at two assumed ones."""
    origin = {_utilization(one, result): f"as {one['what']} on {result['gpu']}" for one in result["runs"]}
    plans = _plans()
    rows = []
    for share in sorted([*origin, *_ASSUMED]):
        taken = [plan.total_flops / (_GPUS * _PEAK_TFLOPS * 1e12 * share * 3600) for plan in plans]
        cells = [f"{one:.1f} h, {_GPUS * one:.0f} GPU-hours" for one in taken]
        rows.append([f"{100 * share:.0f} %, {origin.get(share, 'assumed')}", *cells])
    return markdown_table(["utilization", *_RUNS], rows)


def _plans() -> list[Plan]:
    return [make_plan(load_config(_CONFIGS / f"{name}.json", []), world_size=_GPUS) for name in _RUNS.values()]


def _utilization(run: dict[str, Any], result: dict[str, Any]) -> float:
    """Return the utilization: only matrix products count, and every row counts as full."""
    achieved = _sequences_per_s(run) * _flops_per_sequence(run, result) / result["gpus"]
    return achieved / (result["peak_tflops"] * 1e12)


def _sequences_per_s(run: dict[str, Any]) -> float:
    return run.get("sequences_per_s") or run["sequences"] / run["hours"] / 3600


def _flops_per_sequence(run: dict[str, Any], result: dict[str, Any]) -> float:
    model = load_config({"model": run["model"], "data": {"seq_length": result["seq_length"]}}).model
    flops = ModelFlops(model, result["seq_length"], run["mask_probability"])
    # The published programs compute the whole last block.
    return flops.per_sequence(BlockWork(model.num_layers, model.num_layers, last_whole=0.0))
