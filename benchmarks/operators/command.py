"""Operators of a training step and waits for the device, by part of the step, with DeepSpeed's boundary and with ours.

Each operator is at least one kernel launch, and a GPU that waits for launches computes nothing. The numbers depend on
the number of blocks and parameters, not on sizes, so a narrow model on a CPU shows those of the real one. Views and
allocations are left out: they launch nothing. A multi-tensor operator counts once, although it is a few kernels.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.batches import pattern_batch
from benchmarks.engines import deepspeed_json, model_section, single_rank
from benchmarks.machine import describe_device
from benchmarks.markdown import markdown_table
from benchmarks.options import chosen
from bert_pld.config import BATCH_KEYS, load_config
from bert_pld.model import BertForPreTraining
from bert_pld.training.boundary import REPLACED
from bert_pld.training.engine import make_engine

EXAMPLE = "python -m benchmarks operators --json operators.json"
_ROWS, _SEQ_LENGTH, _WIDTH, _ENTRIES = 2, 16, 64, 128
_WARMUP_STEPS = 2
_MUON = {"type": "Muon", "params": {"lr": 1e-5, "muon_lr": 2e-5, "weight_decay": 0.01}}
_WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")
"""Operators whose result the host reads."""
_LAUNCH_NOTHING = ("empty", "detach", "alias", "_unsafe_view", "_reshape_alias", "set_", "lift_fresh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subject's own options."""
    add = parser.add_argument
    add("--num_layers", type=int, default=12, help="blocks (default 12)")
    add("--zero_stages", default="0,1,2", help="ZeRO stages, joined by commas (default 0,1,2)")
    add("--dtypes", default="bf16", help="list of fp32, bf16 (default bf16)")
    add("--optimizers", default="AdamW,Muon", help="list of AdamW, Muon (default both)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Count the operators of one step of each engine, with DeepSpeed's boundary and with ours."""
    stages = [int(stage) for stage in chosen("--zero_stages", options.zero_stages, ("0", "1", "2", "3"))]
    dtypes = chosen("--dtypes", options.dtypes, ("fp32", "bf16"))
    optimizers = chosen("--optimizers", options.optimizers, ("AdamW", "Muon"))
    counts = []
    with single_rank("cpu") as device:
        for dtype in dtypes:
            for stage in stages:
                for optimizer in optimizers:
                    for boundary in ("DeepSpeed", "bert_pld"):
                        key = {"dtype": dtype, "zero_stage": stage, "optimizer": optimizer, "boundary": boundary}
                        counts.append({**key, **_count(options.num_layers, dtype, stage, optimizer, boundary)})
        return {**describe_device(device), "num_layers": options.num_layers, "counts": counts}


def _count(layers: int, dtype: str, stage: int, optimizer: str, boundary: str) -> dict[str, Any]:
    settings = deepspeed_json(dtype, stage, _ROWS)
    if optimizer == "Muon":
        settings["optimizer"] = _MUON
    sizes = {"num_layers": layers, "vocab_size": _ENTRIES, "max_position_embeddings": _SEQ_LENGTH}
    run = load_config(
        {
            **settings,
            "model": {**model_section(_WIDTH, **sizes), "next_sentence_prediction": True},
            "data": {"seq_length": _SEQ_LENGTH},
            "progressive_layer_drop": {"enabled": False},
        }
    )
    batch_sizes = dict(zip(BATCH_KEYS, run.batch_sizes(1), strict=True))
    run = dataclasses.replace(run, deepspeed={**run.deepspeed, **batch_sizes})
    torch.manual_seed(0)
    engine = make_engine(run, BertForPreTraining(run.model))
    if boundary == "DeepSpeed":
        for name in REPLACED:
            vars(engine.optimizer).pop(name, None)  # reveals the method of DeepSpeed's class
    batch = pattern_batch(run.model, _ROWS, _SEQ_LENGTH, 0, "cpu")
    for _ in range(_WARMUP_STEPS + 1):
        with _counting() as forward:
            loss = engine(**batch)["loss"]
        with _counting() as backward:
            engine.backward(loss)
        with _counting() as step:
            engine.step()
    parts = {"forward": forward, "backward": backward, "step": step}
    return {name: {"operators": operators.total(), "waits": _waits(operators)} for name, operators in parts.items()}


def _waits(operators: collections.Counter[str]) -> int:
    return sum(operators[name] for name in _WAITING)


@contextmanager
def _counting() -> Iterator[collections.Counter[str]]:
    """Count the operators that a block of code runs, by name."""
    operators: collections.Counter[str] = collections.Counter()

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            namespace, name = operator.name().split("::")
            name = name.split(".")[0]
            if not operator.is_view and not name.startswith(_LAUNCH_NOTHING) and namespace != "profiler":
                operators[name] += 1
            return operator(*args, **(kwargs or {}))

    with Counter():
        yield operators


def report(result: dict[str, Any]) -> str:
    """Format a Markdown table with a row for each engine."""
    rows = []
    for one in result["counts"]:
        parts = [one[name] for name in ("forward", "backward", "step")]
        cells = [f"{part['operators']:,}" for part in parts]
        waits = sum(part["waits"] for part in parts)
        rows.append((one["dtype"], str(one["zero_stage"]), one["optimizer"], one["boundary"], *cells, str(waits)))
    return markdown_table(("", "ZeRO", "optimizer", "boundary", "forward", "backward", "step", "waits"), rows)
