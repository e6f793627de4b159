"""Implementations of a fused operation: our launcher, eager torch, the same under torch.compile, Apex."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.kernels.cases import EPS
from benchmarks.kernels.device_timing import Implementation
from benchmarks.kernels.operation import Case, Formula, InputSet, Operation

if TYPE_CHECKING:
    from bert_pld.kernels.tiles import Tile

PEERS = ("eager", "compiled", "apex")


def triton_obstacle(device: torch.device) -> str | None:
    """Return why Triton's kernels cannot be timed here; None if they can."""
    if device.type != "cuda":
        return "needs a GPU"
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set: kernels would be interpreted"
    return None


def triton_implementation(case: Case, tile: Tile | None = None) -> Implementation:
    """Our launcher on plain tensors; without a tile, with the launcher's own."""
    operation, input_sets = case.operation, case.input_sets
    if operation.overwrites:
        overwritten = [overwritable(inputs) for inputs in input_sets]

        def restore() -> None:
            for inputs, source in zip(overwritten, input_sets, strict=True):
                inputs.arguments[0].copy_(source.arguments[0].detach())

        return Implementation("triton", lambda index: operation.forward(overwritten[index], tile), restore)
    if case.direction == "forward":
        return Implementation("triton", lambda index: operation.forward(input_sets[index], tile))
    saved = [operation.forward(inputs) for inputs in input_sets]
    return Implementation("triton", lambda index: operation.backward(input_sets[index], saved[index], tile))


def torch_implementation(name: str, formula: Formula, case: Case) -> Implementation:
    """A formula under autograd; backward retains the graph of an untimed forward."""
    input_sets = case.input_sets

    def forward(index: int) -> tuple[Any, ...]:
        return formula(*input_sets[index].arguments)

    def gradients(index: int, outputs: tuple[Any, ...], retain: bool) -> tuple[Any, ...]:
        used = [(out, grad) for out, grad in zip(outputs, input_sets[index].upstream, strict=True) if grad is not None]
        results, upstream = zip(*used, strict=True)
        return torch.autograd.grad(results, input_sets[index].leaves, upstream, retain_graph=retain)

    if case.direction == "forward":
        return Implementation(name, forward)
    if case.direction == "both":
        return Implementation(name, lambda index: gradients(index, forward(index), retain=False))
    outputs = [forward(index) for index in range(len(input_sets))]
    return Implementation(name, lambda index: gradients(index, outputs[index], retain=True))


def peer_formula(peer: str, operation: Operation) -> Formula | str | None:
    """Return a peer's formula, the reason why it cannot run here, or None where it has no such operation."""
    if peer == "eager":
        return operation.formula()
    if peer == "compiled":
        compiled: Formula = torch.compile(operation.formula(), dynamic=False)
        return compiled
    if operation.name != "layer_norm":
        return None
    try:
        from apex.normalization.fused_layer_norm import fused_layer_norm_affine
    except (ImportError, AttributeError):
        return "not installed"
    if operation.device.type != "cuda":
        return "needs a GPU"
    width = operation.size.hidden
    return lambda stream, weight, norm_bias: (fused_layer_norm_affine(stream, weight, norm_bias, (width,), EPS),)


@contextlib.contextmanager
def repeatable_compiled_backward() -> Iterator[None]:
    """Let a compiled backward run repeatedly on the same graph; discard compiled code at the end."""
    from torch._functorch import config

    with config.patch(donated_buffer=False):
        yield
    torch.compiler.reset()


def overwritable(inputs: InputSet) -> InputSet:
    """The same input set with a copy of its first argument."""
    first, *others = inputs.arguments
    return InputSet((first.detach().clone(), *others), inputs.upstream)
