"""Predicted time and MFU of a training step on an H100 and an H200, from the bytes and FLOPs of its operators.

A prediction, not a measurement: no GPU takes part. Forward and backward run on meta tensors of the real sizes with the
present kernels, and every operator and launch is recorded with its bytes and FLOPs (`benchmarks.operators`). The end of
the step is recorded in a narrow engine; its bytes are proportional to the parameters. The host's time is measured on
this CPU with Triton's launches left out. Each assumption is a field of `Assumptions`, and `--assume` changes it.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from benchmarks.batches import pattern_batch, targets_of
from benchmarks.engines import single_rank
from benchmarks.machine import processor_name
from benchmarks.markdown import markdown_table
from benchmarks.operators.narrow import MICRO_BATCH_SIZE, SEQ_LENGTH, WIDTH, narrow_engine, narrow_run, record_boundary
from benchmarks.operators.recording import Recorder, Work, as_on_a_gpu, record_model
from benchmarks.options import chosen, positive_integers
from bert_pld.cli import require_positive
from bert_pld.config import ModelConfig, apply_override, load_config
from bert_pld.cost.flops import ModelFlops, parameter_count, parameter_tensors
from bert_pld.model.graphs import BlockGraphs

EXAMPLE = "python -m benchmarks prediction --json prediction.json"
COPY_BYTES_PER_S = {"H100": 3.0e12, "H200": 4.3e12}
"""Measured bandwidths of a device-to-device copy."""
MICRO_BATCH_SIZES = {"base": 256, "large": 128}
"""Sequences of 128 tokens; those of the shipped configurations."""
_SEQ, _VOCABULARY = 128, 30528


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What a GPU achieves. Only the bandwidths and the ceiling of matrix products were measured, on other work."""

    product_flops_per_s: float = 790e12
    """Ceiling of bf16 matrix products on random data, on either GPU; MFU refers to it."""
    product_half_width: float = 200.0
    """A product whose smallest dimension is d achieves d / (d + this) of the ceiling: 627 TFLOP/s at 768, 661 at
    1,024."""
    fp8_half_width: float = 400.0
    """The same for FP8 products, whose ceiling is twice as high."""
    attention_flops_per_s: float = 300e12
    """FLOP/s of the attention kernel, if its bytes need less time."""
    share_of_bandwidth: float = 0.85
    """Share of the copy bandwidth that kernels and operators achieve."""
    shortest_launch_s: float = 2.5e-6
    """Least time of an operator on the device, with the gap before the next one."""
    launch_of_a_kernel_s: float = 10e-6
    """The host's time in Triton's launcher, which the measured host time leaves out."""
    launch_of_a_graph_s: float = 15e-6
    """The same for a CUDA graph of a block, in one direction."""
    end_of_step_s: float = 2e-4
    """Idle time of the device at the end of a step, while the host waits for the norm."""


@dataclasses.dataclass(frozen=True)
class StepPrediction:
    """Times of one step on one GPU, in ms."""

    model: str
    optimizer: str
    gpu: str
    micro_batches: int
    ideal: float
    """All FLOPs that are executed, at the ceiling."""
    products: float
    attention: float
    blocks: float
    """Everything else in the blocks and the final LayerNorm, which memory bounds."""
    rest: float
    """Everything else in embeddings, heads and losses."""
    host: float
    """The host's time for forward and backward."""
    tail: float
    """The end of the step."""

    @property
    def total(self) -> float:
        """Time of the step: the device waits for the host or the host for the device."""
        return max(self.products + self.attention + self.blocks + self.rest, self.host) + self.tail

    def as_json(self) -> dict[str, Any]:
        """Return all fields and sums, in JSON's types."""
        return {**dataclasses.asdict(self), "total": self.total, "mfu": self.ideal / self.total}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subject's own options."""
    add = parser.add_argument
    add("--models", default="base,large", help="list of base, large (default both)")
    add("--optimizers", default="AdamW,Muon", help="list of AdamW, Muon (default both)")
    add("--micro_batches", default="1,4", help="micro-batches a step, joined by commas (default 1,4)")
    add("--fp8", action="store_true", help="with model.fp8")
    add("--cuda_graphs", action="store_true", help="with model.cuda_graphs")
    add("--rounds", type=int, default=10, help="measurements of the host's time (default 10)")
    add("--assume", action="append", default=[], metavar="KEY=VALUE", help="change a field of Assumptions")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Predict a step of each model, optimizer, number of micro-batches and GPU."""
    require_positive(options, "rounds")
    names = chosen("--models", options.models, tuple(MICRO_BATCH_SIZES))
    optimizers = chosen("--optimizers", options.optimizers, ("AdamW", "Muon"))
    counts = positive_integers("--micro_batches", options.micro_batches)
    assumptions = _assumptions(options.assume)
    steps: list[StepPrediction] = []
    micro_batch: dict[str, dict[str, Any]] = {}
    with single_rank("cpu"):
        for name in names:
            model = _model(name, options.fp8)
            work = record_model(model, "triton", MICRO_BATCH_SIZES[name], _SEQ)
            launched = [one for one in work if one.kind == "kernel"]
            graphs = 2 * (model.num_layers - 1) if options.cuda_graphs else 0
            captured = sum(one.part == "blocks" for one in launched) * graphs // (2 * model.num_layers)
            launching_s = (len(launched) - captured) * assumptions.launch_of_a_kernel_s
            launching_s += graphs * assumptions.launch_of_a_graph_s
            host_s = _host_seconds(model, options.rounds, options.cuda_graphs) + launching_s
            counts_of = {"operators": len(work), "of_them_kernels": len(launched), "graphs": graphs}
            if graphs:
                work += _work_around_graphs(model, MICRO_BATCH_SIZES[name] * _SEQ)
            micro_batch[name] = {**counts_of, "host_ms": 1e3 * host_s, "bytes_by_kernel": _bytes_by_kernel(launched)}
            for optimizer in optimizers:
                tails = {count: _end_of_step(model, optimizer, count) for count in counts}
                for count in counts:
                    for gpu in COPY_BYTES_PER_S:
                        found = _predict(work, tails[count], count, gpu, assumptions)
                        flops = count * _executed_flops(model, MICRO_BATCH_SIZES[name])
                        ideal, host = flops / assumptions.product_flops_per_s, host_s * count
                        times = {"ideal": 1e3 * ideal, "host": 1e3 * host, **found}
                        steps.append(StepPrediction(name, optimizer, gpu, count, **times))
    return {
        "processor": processor_name(),
        "torch": torch.__version__,
        "assumptions": dataclasses.asdict(assumptions),
        "copy_bytes_per_s": COPY_BYTES_PER_S,
        "fp8": options.fp8,
        "cuda_graphs": options.cuda_graphs,
        "micro_batch_sizes": MICRO_BATCH_SIZES,
        "micro_batch": micro_batch,
        "steps": [step.as_json() for step in steps],
    }


def _model(name: str, fp8: bool) -> ModelConfig:
    section = {"preset": name, "vocab_size": _VOCABULARY, "next_sentence_prediction": True, "fp8": fp8}
    return load_config({"train_batch_size": 1, "bf16": {"enabled": True}, "model": section}).model


def _executed_flops(model: ModelConfig, rows: int) -> float:
    """Return the FLOPs of a micro-batch's matrix products."""
    flops = ModelFlops(model, _SEQ, targets_of(_SEQ) / _SEQ)
    return rows * flops.per_sequence()


def _assumptions(changes: Sequence[str]) -> Assumptions:
    values: dict[str, Any] = {}
    for change in changes:
        apply_override(values, change, "--assume")
    known = [field.name for field in dataclasses.fields(Assumptions)]
    for key, value in values.items():
        if key not in known or isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ValueError(f"--assume {key}={value}: must be a number above 0 for one of {', '.join(known)}")
    return dataclasses.replace(Assumptions(), **values)


def _predict(
    work: Sequence[Work], tail: Sequence[Work], count: int, gpu: str, assumptions: Assumptions
) -> dict[str, float]:
    """Return the device's times of a step of `count` equal micro-batches, in ms."""
    seconds: dict[str, float] = collections.defaultdict(float)
    for one in work:
        seconds[_row_of(one)] += count * _device_seconds(one, gpu, assumptions)
    seconds["tail"] = assumptions.end_of_step_s + sum(_device_seconds(one, gpu, assumptions) for one in tail)
    return {row: 1e3 * seconds[row] for row in ("products", "attention", "blocks", "rest", "tail")}


def _row_of(work: Work) -> str:
    if work.kind in ("product", "attention"):
        return {"product": "products"}.get(work.kind, work.kind)
    return "blocks" if work.part in ("blocks", "final norm") else "rest"


def _device_seconds(work: Work, gpu: str, assumptions: Assumptions) -> float:
    by_bytes = work.bytes / (assumptions.share_of_bandwidth * COPY_BYTES_PER_S[gpu])
    rate = assumptions.attention_flops_per_s
    if work.kind == "product":
        fp8 = work.name == "_scaled_mm"
        half_width = assumptions.fp8_half_width if fp8 else assumptions.product_half_width
        rate = (2 if fp8 else 1) * assumptions.product_flops_per_s * work.width / (work.width + half_width)
    return max(by_bytes, work.flops / rate if work.flops else 0.0, assumptions.shortest_launch_s)


def _end_of_step(model: ModelConfig, optimizer: str, count: int) -> list[Work]:
    """Return the work of the end of a step: that of a narrow model of the same proportions, with bytes as of `model`.

    Muon's matrix products, which are not proportional to the parameters, are recorded at their sizes.
    """
    assert model.vocab_size is not None
    narrow_vocabulary = model.vocab_size * WIDTH // model.hidden_size
    run = narrow_run("bf16", 1, optimizer, model.num_layers, narrow_vocabulary, min(count, 2))
    larger = parameter_count(model) / parameter_count(run.model)
    recorded = [one for one in record_boundary(run) if one.kind != "product"]
    # What a further micro-batch adds.
    recorded += [one for one in recorded if one.part == "accumulation"] * max(count - 2, 0)
    work = [dataclasses.replace(one, bytes=round(one.bytes * larger)) for one in recorded]
    return work + (_muon_products(model) if optimizer == "Muon" else [])


def _muon_products(model: ModelConfig) -> list[Work]:
    from bert_pld.training.muon import orthogonalize

    hidden, inner = model.hidden_size, model.intermediate_size
    recorder = Recorder()
    with recorder:
        for count, shape in ((4 * model.num_layers, (hidden, hidden)), (2 * model.num_layers, (hidden, inner))):
            orthogonalize(torch.empty(count, *shape, dtype=torch.bfloat16, device="meta"), 5)
    return [one for one in recorder.work if one.kind == "product"]


class _NoReplay:
    """A recorder of graphs whose replays do nothing."""

    def rehearse(self, body: Callable[[], Any]) -> None:
        """Run nothing beforehand."""

    def record(self, body: Callable[[], list[torch.Tensor]]) -> tuple[list[torch.Tensor], Callable[[], None]]:
        """Return the body's results and a function that does nothing."""
        return body(), lambda: None


def _work_around_graphs(model: ModelConfig, tokens: int) -> list[Work]:
    """Return what CUDA graphs add on the device: copies of gradients, and into and out of the chain of blocks."""
    element, chain = 2, 2 * tokens * model.hidden_size
    tensors = [one.elements for one in parameter_tensors(model) if one.block is not None]
    gradients = sum(tensors) * (model.num_layers - 1) // model.num_layers
    small = [Work("copy_", "blocks", "operator", 0)] * (2 * (model.num_layers - 1))  # biases and their gradients
    copies = [Work("copy_", "blocks", "operator", element * elements) for elements in (chain, 2 * chain)]
    # One launch for each block, but its bytes are what counts.
    return [*small, *copies, Work("_foreach_mul", "blocks", "operator", 2 * element * gradients)]


def _host_seconds(model: ModelConfig, rounds: int, graphs: bool = False) -> float:
    """Return the shortest processor time of forward and backward of a narrow model, without Triton's launcher.

    `graphs`: with CUDA graphs, without their launches.
    """
    run = narrow_run("bf16", 1, "AdamW", model.num_layers, accumulation_steps=1 << 20)
    batch = pattern_batch(run.model, MICRO_BATCH_SIZE, SEQ_LENGTH, 0, "cpu")
    with as_on_a_gpu():
        engine = narrow_engine(run, "triton")
        engine.module.encoder.graphs = BlockGraphs(_NoReplay) if graphs else None
        shortest = float("inf")
        for _ in range(rounds + 2):
            began = time.process_time()
            engine.backward(engine(**batch)["loss"])
            engine.step()
            shortest = min(shortest, time.process_time() - began)
    return shortest


def _bytes_by_kernel(launched: Iterable[Work]) -> dict[str, int]:
    total: collections.Counter[str] = collections.Counter()
    for one in launched:
        total[one.name] += one.bytes
    return dict(total)


def report(result: dict[str, Any]) -> str:
    """Format a Markdown table with a row for each step."""
    names = ("ideal", "products", "attention", "blocks", "rest", "tail")
    rows = []
    for step in result["steps"]:
        cells = [f"{step[name]:.1f}" for name in names]
        bound = "*" if step["host"] > sum(step[name] for name in names[1:5]) else ""
        cells += [f"{step['host']:.0f}{bound}", f"{step['total']:.1f}", f"**{step['mfu']:.0%}**"]
        size = f"{result['micro_batch_sizes'][step['model']]} × {_SEQ}"
        rows.append((step["model"], f"{step['micro_batches']} · {size}", step["optimizer"], step["gpu"], *cells))
    header = ("", "micro-batches", "optimizer", "GPU", *names, "host", "step", "MFU")
    return markdown_table(header, rows)
