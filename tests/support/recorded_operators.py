"""A record of the operators that torch dispatches, and of the kernels that Triton interprets."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class RecordOperators(TorchDispatchMode):
    """Record each operator, forward and backward, as (operator, arguments, result)."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, result))
        return result


def record_launches(monkeypatch):
    """Record each launch of a Triton kernel in the interpreter: its name, grid, and arguments that are no tensors."""
    from triton.runtime.interpreter import InterpretedFunction

    launches, run = [], InterpretedFunction.run

    def recording(kernel, *arguments, grid, **keywords):
        named = {name: value for name, value in keywords.items() if not isinstance(value, torch.Tensor)}
        others = [value for value in arguments if not isinstance(value, torch.Tensor)]
        launches.append((kernel.__name__, grid, others, named))
        return run(kernel, *arguments, grid=grid, **keywords)

    monkeypatch.setattr(InterpretedFunction, "run", recording)
    return launches
