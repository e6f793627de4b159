"""Correctness before timing: a kernel's outputs and gradients against the specification in fp64, on one input set."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.kernels.implementations import overwritable
from benchmarks.kernels.operation import InputSet, Operation

LARGEST_ERROR = 2e-2
"""Largest accepted ‖out − ref‖ / ‖ref‖; bf16 operands give 1e-3 to 1e-2."""


def kernel_errors(operation: Operation, inputs: InputSet) -> dict[str, float]:
    """The largest relative error of the outputs for each direction; NaN where an output is NaN."""
    outputs, gradients = exact_results(operation, inputs)
    if operation.overwrites:
        inputs = overwritable(inputs)
    with _poisoned_memory():
        saved = operation.forward(inputs)
        ours = operation.backward(inputs, saved)
    errors = {
        "forward": [relative_error(mine, exact) for mine, exact in zip(saved, outputs, strict=False)],
        "backward": [relative_error(mine, exact) for mine, exact in zip(ours, gradients, strict=True)],
    }
    errors["both"] = errors["forward"] + errors["backward"]
    return {direction: float(np.max(errors[direction])) for direction in operation.directions}


def relative_error(found: Tensor, exact: Tensor) -> float:
    """‖found − exact‖ / ‖exact‖ in fp64; infinite where the shapes differ."""
    if found.shape != exact.shape:
        return math.inf
    found, exact = found.detach().double(), exact.detach().double()
    norm = exact.norm().item()
    return (found - exact).norm().item() / (norm if norm > 0 else 1.0)


def passes(error: float) -> bool:
    """Whether an error is acceptable; NaN is not."""
    return error <= LARGEST_ERROR


def exact_results(operation: Operation, inputs: InputSet) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients of the specification in fp64."""
    exact = [t.detach().double().requires_grad_() if t.is_floating_point() else t for t in inputs.arguments]
    outputs = operation.specification()(*exact)
    used = [(out, g.double()) for out, g in zip(outputs, inputs.upstream, strict=False) if g is not None]
    results, upstream = zip(*used, strict=True)
    gradients = torch.autograd.grad(results, [t for t in exact if t.is_floating_point()], upstream)
    return [out.detach() for out in outputs], list(gradients)


@contextlib.contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Fill newly allocated memory with NaN, so that an output that is never written is noticed."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled
