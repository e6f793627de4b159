"""Cost of a checkpoint: seconds that training stops, seconds until it is complete, share of time at an interval.

Blocks of training steps take turns: without a checkpoint, with one that is written beside training (as runs do), with
one that training waits for, and with DeepSpeed's own `save_checkpoint`, which neither hashes nor flushes. The cost is
the block's extra time over a block without a checkpoint; it includes slower steps beside the writing thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.batches import pattern_batch
from benchmarks.engines import single_rank
from benchmarks.machine import describe_device
from bert_pld.checkpoint import format as checkpoint_format
from bert_pld.checkpoint.writer import CheckpointWriter
from bert_pld.cli import require_positive
from bert_pld.config import load_config
from bert_pld.files import CHECKPOINTS, TOKENIZER, VOCABULARY
from bert_pld.model import BertForPreTraining, use_backend
from bert_pld.training.engine import make_engine

EXAMPLE = "python -m benchmarks checkpoint --model_preset base --json checkpoint.json"
KINDS = ("none", "beside", "waiting", "deepspeed")
_SIZES = ("model_preset", "zero_stage", "micro_batch_size", "seq_length")
_RECORDED_OPTIONS = (*_SIZES, "idle_step_s", "steps_per_block", "rounds", "interval")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subject's own options."""
    add = parser.add_argument
    add("--model_preset", default="base", help="tiny, mini, small, medium, base, large (default base)")
    add("--vocab_size", type=int, default=30528)
    add("--seq_length", type=int, default=128, help="tokens a sequence (default 128)")
    add("--micro_batch_size", type=int, default=8, help="sequences a step (default 8)")
    add("--zero_stage", type=int, default=1, choices=range(4), help="(default 1)")
    add("--steps_per_block", type=int, default=4, help="steps a block, which has one checkpoint (default 4)")
    add("--rounds", type=int, default=5, help="blocks of each kind (default 5)")
    add("--interval", type=int, default=1000, help="steps a checkpoint, for the share (default 1000)")
    add("--idle_step_s", type=float, help="seconds to sleep in place of each step, as if a GPU trained")
    add("--folder", type=Path, help="where checkpoints are written (default: a temporary folder)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every kind of block in turns.

    The cost of a kind is the median, least and most of a block over the median without a checkpoint; `share` is its
    part of training time at the interval.
    """
    require_positive(options, "rounds", "steps_per_block", "interval", "micro_batch_size", "seq_length")
    with (
        single_rank("cuda" if torch.cuda.is_available() else "cpu") as device,
        tempfile.TemporaryDirectory("", "bench_checkpoint_", options.folder, ignore_cleanup_errors=True) as folder,
    ):
        return _measure(options, device, Path(folder))


def _measure(options: argparse.Namespace, device: torch.device, folder: Path) -> dict[str, Any]:
    sizes = {"preset": options.model_preset, "vocab_size": options.vocab_size}
    config = load_config(
        {
            "train_batch_size": options.micro_batch_size,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-5}},
            "zero_optimization": {"stage": options.zero_stage},
            "bf16": {"enabled": device.type == "cuda"},
            "model": {**sizes, "next_sentence_prediction": True},
            "data": {"seq_length": options.seq_length},
            "training": {"keep_checkpoints": 1},
        }
    )
    model = BertForPreTraining(config.model)
    use_backend(model, "auto", device.type)
    engine = make_engine(config, model)
    batch = pattern_batch(config.model, options.micro_batch_size, options.seq_length, 0, device)
    for name in (TOKENIZER, VOCABULARY):
        (folder / name).write_text("[PAD]\n")
    writer = CheckpointWriter(folder, engine, config, {"data_source": "none", "data_fingerprint": "none"}, None)

    def step() -> None:
        if options.idle_step_s is not None and engine.global_steps > 1:
            time.sleep(options.idle_step_s)
            return
        engine.backward(engine(**batch)["loss"])
        engine.step()

    blocks: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    for _ in range(2):
        step()
    for round_ in range(options.rounds + 1):  # the first of each kind allocates buffers and does not count
        for kind in KINDS:
            figures = _block(kind, step, options.steps_per_block, engine, writer, folder)
            if round_ > 0:
                blocks[kind].append(figures)
    without = [seconds for seconds, _, _ in blocks["none"]]
    plain = statistics.median(without)
    step_s = plain / options.steps_per_block
    kinds = {}
    for kind in KINDS[1:]:
        seconds, stopped, whole = zip(*blocks[kind], strict=True)
        costs = [one - plain for one in seconds]
        cost = statistics.median(costs)
        kinds[kind] = {
            "cost_s": cost,
            "cost_least_s": min(costs),
            "cost_most_s": max(costs),
            "stopped_s": statistics.median(stopped),
            "whole_s": statistics.median(whole),
            "share": cost / (options.interval * step_s + cost),
        }
    newest = checkpoint_format.list_checkpoints(folder / CHECKPOINTS)[0]
    return {
        **describe_device(device),
        **{key: getattr(options, key) for key in _RECORDED_OPTIONS},
        "parameters": sum(p.numel() for p in model.parameters()),
        "checkpoint_bytes": sum(path.stat().st_size for path in newest.iterdir()),
        "step_s": step_s,
        "blocks_without_s": without,
        "kinds": kinds,
    }


def _block(
    kind: str, step: Callable[[], None], steps: int, engine: Any, writer: CheckpointWriter, folder: Path
) -> tuple[float, float, float]:
    """Run a block; return its seconds, seconds that training stopped, and seconds until the checkpoint was complete."""
    started = time.perf_counter()
    ready = waited = 0.0
    if kind == "deepspeed":
        engine.save_checkpoint(str(folder / "deepspeed"), tag="newest", save_latest=False)
        ready = waited = time.perf_counter() - started
    elif kind != "none":
        writer.begin(engine.global_steps, {"tokens": 0, "seconds": 0.0})
        waited = time.perf_counter() - started
        if kind == "waiting":
            writer.complete()
            ready = waited = time.perf_counter() - started
    for _ in range(steps):
        if writer.written:
            ready = time.perf_counter() - started
            writer.complete()
        step()
    if kind == "beside" and not ready:
        writer.complete()
        ready = time.perf_counter() - started
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    writer.close()
    return seconds, waited, ready


def report(result: dict[str, Any]) -> str:
    """Format the figures as a table."""
    lines = [
        f"{result['model_preset']}: {result['parameters'] / 1e6:.1f} M parameters, checkpoint of"
        f" {result['checkpoint_bytes'] / 1e6:,.0f} MB, step {result['step_s']:.3f} s on {result['device']}",
        f"{'':10} {'stopped':>9} {'whole':>9} {'cost':>9} {'least':>9} {'most':>9}"
        f"   share at {result['interval']} steps",
    ]
    for kind, row in result["kinds"].items():
        figures = (row[key] for key in ("stopped_s", "whole_s", "cost_s", "cost_least_s", "cost_most_s"))
        lines.append(f"{kind:10} " + " ".join(f"{value:7.3f} s" for value in figures) + f"   {row['share']:.3%}")
    return "\n".join(lines)
