"""Payload bytes of a step's collectives, against the cost model and the network device's counter."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.communication.collectives import Call, counted_calls, transmitted_bytes
from benchmarks.communication.engine import Setting, Trainer
from benchmarks.markdown import table_lines
from bert_pld.cost.communication import bytes_sent, payload_bytes, step_collectives
from bert_pld.cost.flops import parameter_tensors

_REDUCTIONS = ("all_reduce", "reduce", "reduce_scatter")


def settings_to_count(options: argparse.Namespace, stages: list[int], precisions: list[str]) -> list[Setting]:
    """All combinations of the options' lists; sample and token granularity with the first θ only."""
    by_gates = {
        "none": [("none", 1.0)],
        "batch": [("batch", theta) for theta in options.thetas],
        "sample": [("sample", options.thetas[0])],
        "token": [("token", options.thetas[0])],
    }
    gates = [one for name in options.gates for one in by_gates[name]]
    names = ("micro_batch_size", "num_layers", "hidden_size", "vocab_size", "seq_length")
    sizes = {name: getattr(options, name) for name in names}
    return [
        Setting(stage, precision, granularity, theta, accumulation, **sizes, overlap_comm={"on": True}.get(overlap))
        for overlap in options.overlap_comm
        for precision in precisions
        for stage in stages
        for granularity, theta in gates
        for accumulation in options.accumulations
    ]


def count_bytes(setting: Setting, device: torch.device, interface: str, steps: int, gloo: bool) -> list[dict[str, Any]]:
    """Count the collectives of `steps` optimizer steps; return an entry for each step.

    Network bytes are the mean of a second series of steps, in which no call is counted: those of all ranks on this
    machine, and of anything else that uses the device.
    """
    trainer, ranks = Trainer(setting, device), dist.get_world_size()
    entries = []
    for _ in range(steps):
        with counted_calls() as calls:
            kept = trainer.step()
        has_gradient = [[float(share > 0.0) for share in one] for one in kept]
        model = step_collectives(trainer.run, ranks, has_gradient)
        entries.append({**_counted(calls), "kept": kept, **_modelled(model, ranks, gloo)})
        entries[-1]["dropped_bytes"] = _dropped_bytes(setting, has_gradient)
    dist.barrier()
    before = transmitted_bytes(interface)
    predicted = 0.0
    for _ in range(steps):
        has_gradient = [[float(share > 0.0) for share in one] for one in trainer.step()]
        predicted += bytes_sent(step_collectives(trainer.run, ranks, has_gradient), ranks, gloo)
    dist.barrier()
    after = transmitted_bytes(interface)
    trainer.engine.destroy()
    local = torch.tensor([predicted], dtype=torch.float64, device=device)
    dist.all_reduce(local)
    if before is not None and after is not None:
        entries[-1]["device_bytes_per_step"] = (after - before) / steps
        entries[-1]["modelled_device_bytes_per_step"] = float(local) / steps
    return entries


def _counted(calls: list[Call]) -> dict[str, Any]:
    """Sums by content; a tensor of one element is a scalar: a count, a norm, a flag."""
    large = [call for call in calls if call.elements > 1]
    reduced = [call for call in large if call.kind in _REDUCTIONS]
    gathered = [call for call in large if call.kind == "all_gather"]
    scalars = [call for call in calls if call.elements == 1]
    other = [call for call in large if call.kind not in (*_REDUCTIONS, "all_gather")]
    return {
        "kinds": sorted({call.kind for call in reduced}),
        "gradient_bytes": sum(call.payload_bytes for call in reduced),
        "gradient_zero_bytes": sum(call.zero_bytes for call in reduced),
        "gradient_calls": len(reduced),
        "parameter_bytes": sum(call.payload_bytes for call in gathered),
        "parameter_calls": len(gathered),
        "other_bytes": sum(call.payload_bytes for call in other),
        "scalar_calls": len(scalars),
        "scalar_bytes": sum(call.payload_bytes for call in scalars),
    }


def _modelled(model: list[Any], ranks: int, gloo: bool) -> dict[str, Any]:
    return {
        "modelled_gradient_bytes": payload_bytes(model, content="gradients"),
        "modelled_parameter_bytes": payload_bytes(model, content="parameters"),
        "modelled_gradient_calls": sum(c.calls for c in model if c.content == "gradients"),
        "modelled_parameter_calls": sum(c.calls for c in model if c.content == "parameters"),
        "modelled_sent_bytes": bytes_sent(model, ranks, gloo),
    }


def _dropped_bytes(setting: Setting, has_gradient: list[list[float]]) -> int:
    """Bytes of the gradients of blocks that every micro-batch of the step dropped, in the precision's element size."""
    element = 4 if setting.precision == "fp32" else 2
    dropped = {block for block in range(setting.num_layers) if not any(one[block] for one in has_gradient)}
    return element * sum(tensor.elements for tensor in parameter_tensors(setting.run.model) if tensor.block in dropped)


def report_bytes(result: dict[str, Any]) -> list[str]:
    """Format a Markdown table, a row for each setting: mean bytes a step and rank."""
    lines = [
        f"bytes a step, payload of the collectives ({result['ranks']} ranks, {result['parameters']:,} parameters;"
        " counted | modelled):",
        "",
    ]
    rows = []
    for one in result["settings"]:
        steps, last = one["steps"], one["steps"][-1]
        mean = {key: sum(step[key] for step in steps) / len(steps) for key in steps[0] if key.endswith("bytes")}
        wire = last.get("device_bytes_per_step")
        over = "–" if not wire else f"{wire / last['modelled_device_bytes_per_step']:.3f}"
        gradients, parameters = (
            f"{mean[f'{kind}_bytes']:,.0f} \\| {mean[f'modelled_{kind}_bytes']:,.0f}"
            for kind in ("gradient", "parameter")
        )
        calls = (f"{last['gradient_calls']} + {last['parameter_calls']}", f"{last['scalar_calls']}")
        gradients = f"{'+'.join(last['kinds'])} {gradients}"
        rows.append((one["name"], gradients, f"{mean['gradient_zero_bytes']:,.0f}", parameters, *calls, over))
    header = ("setting", "gradients", "zeros sent", "parameters", "calls", "scalars")
    return lines + table_lines((*header, "device, all ranks, over modelled"), rows)
