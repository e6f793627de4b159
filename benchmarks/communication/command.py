"""Ranks' communication: bytes a step by ZeRO stage and gates, the links' speed, step times against the cost model.

Start it on every rank with the `deepspeed` launcher. `bytes` counts the collectives of training steps and the bytes for
dropped blocks, beside `bert_pld.cost.communication`'s figures and the network device's counter. `links` times single
collectives and fits latency and bandwidth. `steps` does the same, measures compute, copies, update and DeepSpeed's own
time separately, predicts the step times of other settings with `bert_pld.cost.scaling`, and measures those, all in
turns.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.communication.engine import GATES
from benchmarks.communication.links import Links, report_links
from benchmarks.communication.measured_bytes import count_bytes, report_bytes, settings_to_count
from benchmarks.communication.steps import predict_and_measure, report_steps
from benchmarks.machine import describe_device
from benchmarks.options import DTYPES, chosen, fractions, positive_integers
from bert_pld.cli import require_positive
from bert_pld.cluster.process_group import join_process_group
from bert_pld.cost.flops import parameter_count

EXAMPLE = "deepspeed --no_local_rank --num_gpus 2 --module benchmarks communication --parts bytes --json bytes.json"
_PARTS = ("bytes", "links", "steps")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subject's own options."""
    add = parser.add_argument
    add("--parts", default="bytes", help=f"list of {', '.join(_PARTS)} (default bytes); steps includes links")
    add("--stages", default="0,1,2,3", help="ZeRO stages, joined by commas (default 0,1,2,3)")
    add("--precisions", default="fp32", help=f"list of {', '.join(DTYPES)} (default fp32)")
    add("--thetas", default="0.5,0.1", help="constant θ; sample and token granularity use the first (default 0.5,0.1)")
    add("--accumulations", default="1,2", help="micro-batches a step (default 1,2)")
    add("--gates", default=",".join(GATES), help=f"list of {', '.join(GATES)} (default all)")
    add("--overlap_comm", default="default", help="list of default, on (default default)")
    add("--num_layers", type=int, default=4, help="blocks, for bytes (default 4)")
    add("--hidden_size", type=int, default=256, help="width, for bytes (default 256)")
    add("--vocab_size", type=int, default=2048)
    add("--micro_batch_size", type=int, default=4, help="sequences, for bytes (default 4)")
    add("--seq_length", type=int, default=64, help="tokens a sequence (default 64)")
    add("--counted_steps", type=int, default=4, help="steps a setting, for bytes (default 4)")
    add("--rounds", type=int, default=7, help="turns, for links and steps (default 7)")
    add("--interface", default="lo", help="network device whose counter to read (default lo)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the chosen parts; all ranks must call it together and get the same result."""
    parts = chosen("--parts", options.parts, _PARTS)
    stages = [int(stage) for stage in chosen("--stages", options.stages, ("0", "1", "2", "3"))]
    precisions = chosen("--precisions", options.precisions, tuple(DTYPES))
    options.gates = chosen("--gates", options.gates, GATES)
    options.overlap_comm = chosen("--overlap_comm", options.overlap_comm, ("default", "on"))
    options.accumulations = positive_integers("--accumulations", options.accumulations)
    options.thetas = fractions("--thetas", options.thetas)
    require_positive(options, "micro_batch_size", "seq_length", "counted_steps", "rounds")
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise ValueError("communication needs at least two ranks: start it with deepspeed --no_local_rank --num_gpus 2")
    device = join_process_group()
    try:
        return _measure(options, parts, stages, precisions, device)
    finally:
        dist.destroy_process_group()


def _measure(
    options: argparse.Namespace, parts: list[str], stages: list[int], precisions: list[str], device: torch.device
) -> dict[str, Any]:
    import deepspeed

    gloo = dist.get_backend() == "gloo"
    group = {"ranks": dist.get_world_size(), "backend": dist.get_backend()}
    result: dict[str, Any] = {**group, "deepspeed": deepspeed.__version__, **describe_device(device)}
    if "bytes" in parts:
        settings = settings_to_count(options, stages, precisions)
        result["parameters"] = parameter_count(settings[0].run.model)
        interface, steps = options.interface, options.counted_steps
        result["settings"] = [
            {"name": str(one), **vars(one), "steps": count_bytes(one, device, interface, steps, gloo)}
            for one in settings
        ]
    if "steps" in parts:
        links, result["steps"] = predict_and_measure(options.rounds, stages, device, gloo)
        result["links"] = links.result()
    elif "links" in parts:
        links = Links(device)
        for _ in range(options.rounds):
            links.turn()
        result["links"] = links.result()
    return result


def report(result: dict[str, Any]) -> str:
    """Format the parts as Markdown tables."""
    lines = [
        f"{result['ranks']} ranks over {result['backend']}, {result['device']}, torch {result['torch']}, DeepSpeed"
        f" {result['deepspeed']}, {result['threads']} thread(s) a rank"
    ]
    for part, report_part in (("settings", report_bytes), ("links", report_links), ("steps", report_steps)):
        if part in result:
            lines += ["", *report_part(result)]
    return "\n".join(lines)
