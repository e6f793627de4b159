"""Time to a held-out loss: Hugging Face's classes and ours, with and without layer dropping, trained on the same rows.

All contenders train under one JSON, on the same micro-batches with the same masks; those of one normalization start
from the same weights. They take turns of a few steps, A B C A B C …, so that whatever else the machine does falls on
all of them; each one's time is that of its own steps. Reading and masking are not in it, nor are evaluations.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bert_pld.bench._contenders import recompiling
from bert_pld.bench._deepspeed_engine import DTYPES, conditions, single_rank
from bert_pld.bench._host_memory import HostMemory, in_own_process
from bert_pld.bench._options import chosen
from bert_pld.bench._quality_contenders import CONTENDERS, Contender, make_contender
from bert_pld.bench._timing import ceiling_gflops
from bert_pld.config import RunConfig, load_config
from bert_pld.data.data_directory import resolve_data_dir
from bert_pld.data.loader import evaluation_batches, training_batches
from bert_pld.data.micro_batch import MicroBatch
from bert_pld.data.nvidia_rows import open_rows
from bert_pld.data.sharded_rows import ShardedRows
from bert_pld.train.loss_curve import time_to
from bert_pld.train.run import resolve_for_data

EXAMPLE = "python -m bert_pld.bench quality --deepspeed_config ds.json --data_dir shards/ --json quality.json"
_DEFAULT = "hf_bert,hf_megatron,post,pre,pld_batch,pld_sample"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subject's own options."""
    parser.add_argument("--deepspeed_config", required=True, type=Path, help="as for bert_pld.pretrain; for all alike")
    parser.add_argument("--data_dir", required=True, type=Path, help="shards with held-out rows")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override any key")
    parser.add_argument(
        "--contenders", default=_DEFAULT, help=f"of {', '.join(CONTENDERS)} (default {_DEFAULT}); the first is the peer"
    )
    parser.add_argument(
        "--host_memory", action="store_true", help="on a CPU: memory too, of each contender in a process of its own"
    )
    parser.add_argument("--steps_per_turn", type=int, default=25, help="(default 25)")
    parser.add_argument(
        "--target_loss",
        type=float,
        help="nats a masked token (default: what the first contender ends with, and a thousandth)",
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train all contenders for `training.max_steps`.

    Returns:
        JSON-ready: the set-up, the matrix product's GFLOP/s, the target, and of each contender its curve, tokens/s,
        MFU, bytes of memory (None where nobody counted them), time and samples to the target, and `speedup`, the first
        one's time to the target over its own; None where it never got there.

    Raises:
        ValueError: options or data that do not fit.
    """
    names = chosen("--contenders", options.contenders, CONTENDERS)
    config = load_config(options.deepspeed_config, options.set)
    every, steps = config.training.eval_interval, config.training.max_steps
    if options.steps_per_turn < 1 or every % options.steps_per_turn or not every:
        raise ValueError(
            f"--steps_per_turn {options.steps_per_turn}: must divide training.eval_interval, which is {every} and"
            " must not be 0"
        )
    if steps < 2 * every:
        raise ValueError(f"training.max_steps {steps}: must be at least two evaluations, every {every} steps")
    data_dir = resolve_data_dir(options.data_dir, config.data.seq_length)
    training, held_out = open_rows(data_dir, "train"), open_rows(data_dir, "validation")
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    with single_rank(device_type) as device, recompiling():
        config = resolve_for_data(config, training, 1, device)
        memory = {}
        if options.host_memory and device_type == "cpu":
            memory = {
                name: in_own_process(_memory_of, name, config, data_dir, options.steps_per_turn) for name in names
            }
        contenders = [make_contender(name, config, device) for name in names]
        gflops = _train(contenders, config, training, held_out, options.steps_per_turn)
        figures = [_figures(one, gflops, memory.get(one.name, one.peak_bytes)) for one in contenders]
        compared = against_target(figures, options.target_loss)
        return {**_setup(config, options, device), "matmul_gflops": gflops, **compared}


def _train(
    contenders: list[Contender], config: RunConfig, training: ShardedRows, held_out: ShardedRows, steps_per_turn: int
) -> float:
    """Turns of `steps_per_turn` steps, each on batches that were made before it.

    Returns:
        GFLOP/s of a matrix product in the run's precision: the median of what it was at the evaluations.
    """
    settings, rates = config.training, []
    batches = _training_batches(config, training, settings.max_steps)
    while turn := list(itertools.islice(batches, steps_per_turn)):
        for contender in contenders:
            contender.train_turn(turn)
        if contenders[0].steps % settings.eval_interval == 0 or contenders[0].steps == settings.max_steps:
            rates.append(ceiling_gflops(DTYPES[config.precision], contenders[0].engine.device))
            for contender in contenders:
                contender.evaluate(
                    evaluation_batches(
                        held_out,
                        masking_seed=settings.seed,
                        batch_size=config.deepspeed["train_micro_batch_size_per_gpu"],
                        rank=0,
                        world_size=1,
                        max_rows=settings.eval_rows,
                        **config.data.loader_masking,
                    )
                )
            losses = ", ".join(f"{one.name} {one.loss[-1]:.3f}" for one in contenders)
            print(f"step {contenders[0].steps} of {settings.max_steps}: {losses}", file=sys.stderr, flush=True)
    return statistics.median(rates)


def _training_batches(config: RunConfig, training: ShardedRows, steps: int) -> Iterator[list[MicroBatch]]:
    return training_batches(
        training,
        order_seed=config.training.seed,
        masking_seed=config.training.seed,
        micro_batch_size=config.deepspeed["train_micro_batch_size_per_gpu"],
        accumulation_steps=config.deepspeed["gradient_accumulation_steps"],
        rank=0,
        world_size=1,
        first_step=0,
        num_steps=steps,
        **config.data.loader_masking,
        **config.data.loader_order,
    )


def _memory_of(name: str, config: RunConfig, data_dir: Path, steps: int) -> int:
    """Bytes at the highest point of a contender's first steps, when no layer is dropped yet; in a fresh process."""
    with single_rank("cpu") as device, recompiling():
        turn = list(_training_batches(config, open_rows(data_dir, "train"), steps))
        memory = HostMemory()
        contender = make_contender(name, config, device)
        contender.train_turn(turn)
        return sum(memory.figures().values())


def _figures(one: Contender, gflops: float, peak_bytes: int | None) -> dict[str, Any]:
    batch_size, seconds = one.config.deepspeed["train_batch_size"], one.seconds()
    return {
        "name": one.name,
        "tokens_per_s": one.tokens / seconds[-1],
        "mfu": one.flops / seconds[-1] / (gflops * 1e9),
        "executed_flops_per_step": one.flops / one.steps,
        "peak_memory_bytes": peak_bytes,
        "final_loss": one.loss[-1],
        "processor_seconds": round(one.processor_seconds, 2),
        "first_turn_seconds": round(sum(one.turns[0]), 3),
        "samples": [step * batch_size for step in one.evaluated_at],
        "seconds": [round(value, 3) for value in seconds],
        "loss": [round(value, 5) for value in one.loss],
        "accuracy": [round(value, 5) for value in one.accuracy],
    }


def against_target(figures: list[dict[str, Any]], target: float | None = None) -> dict[str, Any]:
    """Add time and samples until the target to each contender's figures.

    Args:
        figures: with `samples`, `seconds` and `loss` at the evaluations.
        target: nats; by default what the first one ends with and half to one and a half thousandths more: two
            implementations of one model differ by less, and that must not decide who gets there. None if its loss is
            no number; nobody gets there.
    """
    last = figures[0]["loss"][-1]
    if target is None and math.isfinite(last):
        target = math.ceil((last + 5e-4) * 1e3) / 1e3

    def until(one: dict[str, Any], what: str) -> float | None:
        return None if target is None else time_to(target, one[what], one["loss"])

    first = until(figures[0], "seconds")
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
        **conditions(device),
        "model": dataclasses.asdict(config.model),
        "deepspeed": config.deepspeed,
        "progressive_layer_drop": dataclasses.asdict(config.progressive_layer_drop),
        "training": dataclasses.asdict(config.training),
        "seq_length": config.data.seq_length,
        "steps_per_turn": options.steps_per_turn,
    }


def report(result: dict[str, Any]) -> str:
    """The figures as a table."""
    model, settings = result["model"], result["training"]
    lines = [
        f"{model['num_layers']} blocks × {model['hidden_size']}, vocabulary {model['vocab_size']:,},"
        f" {settings['max_steps']:,} steps of {result['deepspeed']['train_batch_size']} × {result['seq_length']},"
        f" seed {settings['seed']}",
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}, DeepSpeed"
        f" {result['deepspeed_version']}, transformers {result['transformers']}; turns of"
        f" {result['steps_per_turn']} steps; matrix products: {result['matmul_gflops']:,.0f} GFLOP/s",
        "target: none, the first one's loss is no number"
        if result["target_loss"] is None
        else f"target: held-out MLM loss {result['target_loss']:.3f}",
        f"{'contender':22}{'tokens/s':>10}{'MFU':>8}{'GiB':>7}{'final loss':>12}{'s to target':>13}"
        f"{'sequences':>12}{'× the first':>13}",
    ]
    for one in result["contenders"]:
        seconds, samples, speedup = one["seconds_to_target"], one["samples_to_target"], one["speedup"]
        peak = one["peak_memory_bytes"]
        lines.append(
            f"{one['name']:22}{one['tokens_per_s']:>10,.0f}{one['mfu']:>8.1%}"
            f"{'–' if peak is None else f'{peak / 2**30:.2f}':>7}{one['final_loss']:>12.4f}"
            f"{'never' if seconds is None else f'{seconds:,.1f}':>13}"
            f"{'–' if samples is None else f'{samples:,.0f}':>12}"
            f"{'–' if speedup is None else f'{speedup:.2f}':>13}"
        )
    return "\n".join(lines)
