"""Who runs a fused operation in `bench kernels`: our launcher, eager torch, torch.compile of it, apex.

Peers' backward runs through `torch.autograd.grad` with the graph of an untimed forward retained.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.kernels.cases import EPS
from benchmarks.kernels.device_timing import Contender
from benchmarks.kernels.operation import Draw, Formula, Operation

if TYPE_CHECKING:
    from bert_pld.kernels.tiles import Tile

PEERS = ("eager", "compiled", "apex")


def triton_obstacle(device: torch.device) -> str | None:
    """Why Triton's kernels cannot be timed here, if they can't."""
    if device.type != "cuda":
        return "needs a GPU"
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set: kernels would be interpreted"
    return None


def triton_contender(operation: Operation, direction: str, draws: list[Draw], tile: Tile | None = None) -> Contender:
    """Our launcher, on plain tensors."""
    if operation.overwrites:
        draws, given = [overwritable(draw) for draw in draws], draws

        def restore() -> None:
            for draw, source in zip(draws, given, strict=True):
                draw.inputs[0].copy_(source.inputs[0].detach())

        return Contender("triton", lambda index: operation.forward(draws[index], tile), restore)
    if direction == "forward":
        return Contender("triton", lambda index: operation.forward(draws[index], tile))
    saved = [operation.forward(draw) for draw in draws]
    return Contender("triton", lambda index: operation.backward(draws[index], saved[index], tile))


def torch_contender(name: str, formula: Formula, direction: str, draws: list[Draw]) -> Contender:
    """A formula under autograd."""

    def forward(index: int) -> tuple[Any, ...]:
        return formula(*draws[index].inputs)

    def gradients(index: int, outputs: tuple[Any, ...], retain: bool) -> tuple[Any, ...]:
        used = [(out, grad) for out, grad in zip(outputs, draws[index].upstream, strict=True) if grad is not None]
        results, upstream = zip(*used, strict=True)
        return torch.autograd.grad(results, draws[index].leaves, upstream, retain_graph=retain)

    if direction == "forward":
        return Contender(name, forward)
    if direction == "both":
        return Contender(name, lambda index: gradients(index, forward(index), retain=False))
    outputs = [forward(index) for index in range(len(draws))]
    return Contender(name, lambda index: gradients(index, outputs[index], retain=True))


def peer_formula(peer: str, operation: Operation) -> Formula | str | None:
    """What a peer runs; why it cannot, in words; or None where it has no such operation."""
    if peer == "eager":
        return operation.formula()
    if peer == "compiled":
        compiled: Formula = torch.compile(operation.formula(), dynamic=False)
        return compiled
    if operation.name != "layer_norm":
        return None
    try:
        fused: Callable[..., Any] = importlib.import_module(
            "apex.normalization.fused_layer_norm"
        ).fused_layer_norm_affine
    except (ImportError, AttributeError):
        return "not installed"
    if operation.device.type != "cuda":
        return "needs a GPU"
    width = operation.size.hidden
    return lambda stream, weight, norm_bias: (fused(stream, weight, norm_bias, (width,), EPS),)


@contextlib.contextmanager
def repeatable_compiled_backward() -> Iterator[None]:
    """A compiled backward may be called again on the same graph; on leaving, what was compiled is forgotten."""
    from torch._functorch import config

    with config.patch(donated_buffer=False):
        yield
    torch.compiler.reset()


def overwritable(draw: Draw) -> Draw:
    """With a copy of its first input."""
    first, *others = draw.inputs
    return Draw((first.detach().clone(), *others), draw.upstream)
