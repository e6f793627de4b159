"""Operators of a training step and waits for the device, by module: eager or fused blocks, DeepSpeed's end or ours.

Each operator is at least one kernel launch, and a GPU that waits for launches computes nothing. The numbers depend on
the number of blocks and parameters, not on sizes, so a narrow model shows those of the real one. Forward and backward
run as on a GPU, on meta tensors (`recording.py` says what counts), and the end of the step in an engine on a CPU.
"""

from __future__ import annotations

import argparse
import collections
import itertools
from typing import Any

from benchmarks.engines import single_rank
from benchmarks.machine import describe_device
from benchmarks.markdown import markdown_table
from benchmarks.operators.narrow import MICRO_BATCH_SIZE, SEQ_LENGTH, narrow_run, record_boundary
from benchmarks.operators.recording import PARTS, record_model
from benchmarks.options import chosen

EXAMPLE = "python -m benchmarks operators --json operators.json"
_STEPS = (("reference", "DeepSpeed"), ("reference", "bert_pld"), ("triton", "bert_pld"))
"""Backends of the blocks and boundaries that are compared, the slowest first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subject's own options."""
    add = parser.add_argument
    add("--num_layers", type=int, default=12, help="blocks (default 12)")
    add("--zero_stages", default="0,1,2", help="ZeRO stages, joined by commas (default 0,1,2)")
    add("--dtypes", default="bf16", help="list of fp32, bf16 (default bf16)")
    add("--optimizers", default="AdamW,Muon", help="list of AdamW, Muon (default both)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Count the operators of one step of each engine."""
    stages = [int(stage) for stage in chosen("--zero_stages", options.zero_stages, ("0", "1", "2", "3"))]
    dtypes = chosen("--dtypes", options.dtypes, ("fp32", "bf16"))
    optimizers = chosen("--optimizers", options.optimizers, ("AdamW", "Muon"))
    counts = []
    with single_rank("cpu") as device:
        for dtype, stage, optimizer in itertools.product(dtypes, stages, optimizers):
            run = narrow_run(dtype, stage, optimizer, num_layers=options.num_layers)
            for kernels, boundary in _STEPS:
                work = [
                    *record_model(run.model, kernels, MICRO_BATCH_SIZE, SEQ_LENGTH),
                    *record_boundary(run, boundary),
                ]
                parts = collections.Counter(one.part for one in work)
                key = {"dtype": dtype, "zero_stage": stage, "optimizer": optimizer}
                counts.append(
                    {
                        **key,
                        "kernels": kernels,
                        "boundary": boundary,
                        "operators": {part: parts[part] for part in PARTS},
                        "waits": sum(one.waits for one in work),
                    }
                )
        return {**describe_device(device), "num_layers": options.num_layers, "counts": counts}


def report(result: dict[str, Any]) -> str:
    """Format a Markdown table with a row for each engine."""
    rows = []
    for one in result["counts"]:
        found = one["operators"]
        blocks, heads = ("blocks", "final norm"), ("MLM head", "NSP head", "losses")
        groups = [("embeddings",), blocks, heads, ("accumulation", "reduction"), ("boundary",), PARTS]
        counts = [sum(found[part] for part in group) for group in groups]
        key = (one["dtype"], str(one["zero_stage"]), one["optimizer"], one["kernels"], one["boundary"])
        rows.append((*key, *(f"{count:,}" for count in counts), str(one["waits"])))
    names = ("embeddings", "blocks", "heads, losses", "gradients", "end", "sum", "waits")
    return markdown_table(("", "ZeRO", "optimizer", "blocks by", "end by", *names), rows)
