"""Time to a held-out loss: Hugging Face's classes and ours, with and without layer dropping, trained on the same rows.

All contenders train with one JSON, on the same micro-batches with the same masks; those of one normalization start
from the same weights. They take turns of a few steps, A B C A B C …, so that other work on the machine affects all of
them. Each contender's time is that of its own steps, without reading, masking and evaluations.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.engines import recompiling, single_rank
from benchmarks.host_memory import in_own_process
from benchmarks.hugging_face import HUGGING_FACE_CONTENDERS
from benchmarks.loss_curve import time_to
from benchmarks.machine import describe_libraries, processor_name
from benchmarks.options import chosen
from benchmarks.quality.contenders import CONTENDERS, QualityContender, make_contender
from benchmarks.quality.training import JointTraining, host_memory_of, open_data
from benchmarks.results import save
from benchmarks.timing import allocate_workspaces
from bert_pld.cluster.stopping import SIGNALS, Preemption
from bert_pld.config import RunConfig, load_config
from bert_pld.training.prepare import resolve_config

EXAMPLE = "python -m benchmarks quality --deepspeed_config ds.json --data_dir shards/ --json quality.json"
_DEFAULT = "hf_bert,hf_megatron,post,pre,pld_batch,pld_sample"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subject's own options."""
    add = parser.add_argument
    add("--deepspeed_config", required=True, type=Path, help="as for bert_pld.pretrain; the same for all")
    add("--data_dir", required=True, type=Path, help="shards with held-out rows")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override any key")
    contenders = f"list of {', '.join(CONTENDERS)} (default {_DEFAULT}); the others are compared with the first"
    add("--contenders", default=_DEFAULT, help=contenders)
    add("--host_memory", action="store_true", help="on a CPU: also measure memory, each contender in its own process")
    add("--steps_per_turn", type=int, default=25, help="(default 25)")
    target = "nats a masked token (default: the first contender's last loss and about a thousandth)"
    add("--target_loss", type=float, help=target)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train all contenders for `training.max_steps`.

    The memory of a contender is None where it was not measured; its `speedup` is the first contender's time to the
    target over its own, None where it did not reach the target. `failed` names the contenders that failed.

    The figures are written after each evaluation. SIGTERM, SIGUSR1 or Ctrl-C ends the measurement with those of the
    last one, and `stopped_after_step` names its step.
    """
    names = chosen("--contenders", options.contenders, CONTENDERS)
    config = load_config(options.deepspeed_config, options.set)
    if config.model.architecture != "bert":
        raise ValueError(f"model.architecture: {config.model.architecture!r}; must be 'bert', the contenders' own")
    _refuse_muon_for_theirs(names, config)
    every, steps = config.training.eval_interval, config.training.max_steps
    if options.steps_per_turn < 1 or every % options.steps_per_turn or not every:
        allowed = f"must divide training.eval_interval, which is {every} and must not be 0"
        raise ValueError(f"--steps_per_turn {options.steps_per_turn}: {allowed}")
    if steps < 2 * every:
        raise ValueError(f"training.max_steps {steps}: must be at least two evaluations, every {every} steps")
    if options.target_loss is not None and not 0 < options.target_loss < math.inf:
        raise ValueError(f"--target_loss {options.target_loss}: must be a number of nats above 0")
    rows, held_out = (open_data(config, options.data_dir, split) for split in ("train", "validation"))
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    with single_rank(device_type) as device, recompiling():
        config = resolve_config(config, rows, 1, device)
        memory = {}
        if options.host_memory and device_type == "cpu":
            steps = options.steps_per_turn
            memory = {name: in_own_process(host_memory_of, name, config, options.data_dir, steps) for name in names}
        allocate_workspaces(device)
        training = JointTraining([make_contender(name, config, device) for name in names], config, rows, held_out)
        result, max_steps = None, config.training.max_steps
        try:
            with _stop_signals() as preemption:
                for step, gflops in training.run(options.steps_per_turn, lambda: preemption.stop_requested):
                    peaks = [memory.get(one.name, one.peak_bytes) for one in training.contenders]
                    figures = [
                        _figures(one, gflops, peak) for one, peak in zip(training.contenders, peaks, strict=True)
                    ]
                    result = {
                        **_setup(config, options, device),
                        "data_fingerprint": rows.manifest.fingerprint(),
                        "matmul_gflops": gflops,
                        **against_target(figures, options.target_loss, names[0]),
                        "failed": list(training.failed),
                        "stopped_after_step": step if step < max_steps else None,
                    }
                    save(result, options.json)
        except KeyboardInterrupt:
            if result is None:
                raise
        if result is None:
            raise ValueError(f"stopped by a signal before the first evaluation, at step {every}: nothing was measured")
        return result


def _refuse_muon_for_theirs(names: list[str], config: RunConfig) -> None:
    """Raise ValueError if a Hugging Face class would train under Muon.

    Our Muon takes the matrices of our own blocks and would leave all of theirs to AdamW.
    """
    theirs = [name for name in names if name in HUGGING_FACE_CONTENDERS]
    if theirs and config.deepspeed.get("optimizer", {}).get("type", "").lower() == "muon":
        raise ValueError(
            f"optimizer.type Muon: would train {theirs[0]} with AdamW, because it takes our blocks' matrices only;"
            " must be another optimizer, or --contenders without hf_*"
        )


@contextlib.contextmanager
def _stop_signals() -> Iterator[Preemption]:
    """Handle SIGTERM and SIGUSR1 as requests to stop, for a block."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield Preemption()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _figures(one: QualityContender, gflops: float, peak_bytes: int | None) -> dict[str, Any]:
    batch_size, seconds = one.config.deepspeed["train_batch_size"], one.seconds()
    return {
        "name": one.name,
        "attention": one.attention,
        "tokens_per_s": one.tokens / seconds[-1],
        "mfu": one.flops / seconds[-1] / (gflops * 1e9),
        "executed_flops_per_step": one.flops / one.steps,
        "peak_memory_bytes": peak_bytes,
        "final_loss": _finite(one.loss[-1]),
        "skipped_steps": one.engine.skipped_steps,
        "processor_seconds": round(one.processor_seconds, 2),
        "first_turn_seconds": round(sum(one.turns[0]), 3),
        "samples": [step * batch_size for step in one.evaluated_at],
        "seconds": [round(value, 3) for value in seconds],
        "loss": [_finite(value) for value in one.loss],
        "accuracy": [_finite(value) for value in one.accuracy],
    }


def _finite(value: float) -> float | None:
    """Round to five digits; None, which JSON can hold, for NaN and infinity."""
    return round(value, 5) if math.isfinite(value) else None


def against_target(
    figures: list[dict[str, Any]], target: float | None = None, first_name: str | None = None
) -> dict[str, Any]:
    """Add time and samples until the target to each contender's figures.

    The default target is the first contender's last loss and half to one and a half thousandths more: two
    implementations of one model differ by less, which must not decide whether they reach it. It is None if that loss is
    not finite; then no contender reaches it. `first_name` is the first contender's name: if it failed, it is missing in
    `figures`, and no other one takes its place.
    """
    compared = figures[0] if first_name is None else next((one for one in figures if one["name"] == first_name), None)
    last = None if compared is None else compared["loss"][-1]
    if target is None and last is not None:
        target = math.ceil((last + 5e-4) * 1e3) / 1e3

    def until(one: dict[str, Any], what: str) -> float | None:
        seen = [(at, loss) for at, loss in zip(one[what], one["loss"], strict=True) if loss is not None]
        return None if target is None else time_to(target, *([pair[i] for pair in seen] for i in range(2)))

    first = None if compared is None else until(compared, "seconds")
    found = []
    for one in figures:
        seconds = until(one, "seconds")
        reached = {
            "seconds_to_target": seconds,
            "samples_to_target": until(one, "samples"),
            "speedup": None if seconds is None or first is None else first / seconds,
        }
        found.append({**one, **reached})
    return {"target_loss": target, "contenders": found}


def _setup(config: RunConfig, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    return {
        **describe_libraries(device),
        "processor": processor_name(),
        "model": dataclasses.asdict(config.model),
        "deepspeed": config.deepspeed,
        "progressive_layer_drop": dataclasses.asdict(config.progressive_layer_drop),
        "training": dataclasses.asdict(config.training),
        "seq_length": config.data.seq_length,
        "steps_per_turn": options.steps_per_turn,
    }


def report(result: dict[str, Any]) -> str:
    """Format the figures as a table."""
    model, settings = result["model"], result["training"]
    lines = [
        f"{model['num_layers']} blocks × {model['hidden_size']}, vocabulary {model['vocab_size']:,},"
        f" {settings['max_steps']:,} steps of {result['deepspeed']['train_batch_size']} × {result['seq_length']},"
        f" seed {settings['seed']}",
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}, DeepSpeed"
        f" {result['deepspeed_version']}, transformers {result['transformers']}; turns of"
        f" {result['steps_per_turn']} steps; matrix products: {result['matmul_gflops']:,.0f} GFLOP/s",
        "target: none, the first contender failed or its loss is not finite"
        if result["target_loss"] is None
        else f"target: held-out MLM loss {result['target_loss']:.3f}",
        f"{'contender':22}{'tokens/s':>10}{'MFU':>8}{'GiB':>7}{'final loss':>12}{'s to target':>13}"
        f"{'sequences':>12}{'× the first':>13}",
    ]
    for one in result["contenders"]:
        seconds, samples, speedup = one["seconds_to_target"], one["samples_to_target"], one["speedup"]
        peak, final = one["peak_memory_bytes"], one["final_loss"]
        lines.append(
            f"{one['name']:22}{one['tokens_per_s']:>10,.0f}{one['mfu']:>8.1%}"
            f"{'–' if peak is None else f'{peak / 2**30:.2f}':>7}{'–' if final is None else f'{final:.4f}':>12}"
            f"{'never' if seconds is None else f'{seconds:,.1f}':>13}"
            f"{'–' if samples is None else f'{samples:,.0f}':>12}"
            f"{'–' if speedup is None else f'{speedup:.2f}':>13}"
        )
    if result.get("stopped_after_step") is not None:
        lines.append(f"stopped by a signal: figures of the first {result['stopped_after_step']:,} steps")
    return "\n".join([*lines, *(f"failed: {line}" for line in result["failed"])])
