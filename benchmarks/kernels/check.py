"""Before a kernel is timed: its outputs and gradients beside the specification's in fp64, on one set of inputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.kernels.contenders import overwritable
from benchmarks.kernels.operation import Draw, Operation

LARGEST_ERROR = 2e-2
"""‖out − ref‖ / ‖ref‖: bf16 operands give 1e-3 to 1e-2."""


def kernel_errors(operation: Operation, draw: Draw) -> dict[str, float]:
    """For each direction, the largest relative error of its outputs; NaN where one is."""
    outputs, gradients = _exact(operation, draw)
    if operation.overwrites:
        draw = overwritable(draw)
    with _poisoned_memory():
        saved = operation.forward(draw)
        ours = operation.backward(draw, saved)
    errors = {
        "forward": [relative_error(mine, exact) for mine, exact in zip(saved, outputs, strict=False)],
        "backward": [relative_error(mine, exact) for mine, exact in zip(ours, gradients, strict=True)],
    }
    errors["both"] = errors["forward"] + errors["backward"]
    return {direction: largest(errors[direction]) for direction in operation.directions}


def relative_error(found: Tensor, exact: Tensor) -> float:
    """‖found − exact‖ / ‖exact‖ in fp64; infinite where the shapes differ."""
    if found.shape != exact.shape:
        return math.inf
    found, exact = found.detach().double(), exact.detach().double()
    norm = exact.norm().item()
    return (found - exact).norm().item() / (norm if norm > 0 else 1.0)


def largest(errors: Sequence[float]) -> float:
    """The maximum, NaN where any is."""
    return math.nan if any(math.isnan(error) for error in errors) else max(errors)


def passes(error: float) -> bool:
    """Whether an error is small; NaN is not."""
    return error <= LARGEST_ERROR


def _exact(operation: Operation, draw: Draw) -> tuple[list[Tensor], list[Tensor]]:
    """The specification's outputs and gradients."""
    inputs = [t.detach().double().requires_grad_() if t.is_floating_point() else t for t in draw.inputs]
    outputs = operation.specification()(*inputs)
    used = [(out, g.double()) for out, g in zip(outputs, draw.upstream, strict=False) if g is not None]
    results, upstream = zip(*used, strict=True)
    gradients = torch.autograd.grad(results, [t for t in inputs if t.is_floating_point()], upstream)
    return [out.detach() for out in outputs], list(gradients)


@contextlib.contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Memory that nothing has written is NaN, so that an output left out shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled
