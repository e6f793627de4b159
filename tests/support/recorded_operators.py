"""A record of the operators that torch dispatches."""

from __future__ import annotations

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
