"""Counters of communication: every call of a process group, with its bytes, and the network device's counter."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed import ProcessGroup

# Kinds of collectives, and the methods of torch's process groups (the names differ between releases from 2.11 on).
_METHODS = {
    "all_reduce": "allreduce allreduce_coalesced",
    "all_gather": "allgather _allgather_base all_gather_single allgather_coalesced allgather_into_tensor_coalesced"
    " all_gather_single_coalesced",
    "reduce_scatter": "reduce_scatter _reduce_scatter_base reduce_scatter_single reduce_scatter_tensor_coalesced"
    " reduce_scatter_single_coalesced",
    "all_to_all": "alltoall alltoall_base all_to_all_single",
    **{kind: kind for kind in ("reduce", "broadcast", "gather", "scatter", "send", "recv")},
}
_KINDS = {method: kind for kind, methods in _METHODS.items() for method in methods.split()}
_PAYLOAD_IS_FIRST_ARGUMENT = {"all_reduce", "reduce", "broadcast", "all_gather", "send"}


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a collective."""

    kind: str
    payload_bytes: int
    """Bytes of the whole tensor: the output of an all-gather, the input of a reduce-scatter."""
    elements: int
    zero_bytes: int
    """Bytes of the payload that were zero when the call began; -1 for an all-gather, which writes its output later."""


@contextlib.contextmanager
def counted_calls() -> Iterator[list[Call]]:
    """Record the calls of every process group of this process, on all threads, while in the context.

    The groups' methods are replaced, not `torch.distributed`'s functions: DeepSpeed keeps references to those.
    """
    calls: list[Call] = []
    # From `vars`: pybind11's methods no longer bind once they were read as attributes.
    originals = {name: vars(ProcessGroup)[name] for name in _KINDS if name in vars(ProcessGroup)}

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        kind = _KINDS[name]

        def call(group: ProcessGroup, *arguments: Any, **keywords: Any) -> Any:
            given = [*arguments, *keywords.values()]
            tensors = list(_tensors(given[0] if kind in _PAYLOAD_IS_FIRST_ARGUMENT else given[1]))
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            zeros = sum(int((tensor == 0).sum()) * tensor.element_size() for tensor in tensors)
            elements = sum(tensor.numel() for tensor in tensors)
            calls.append(Call(kind, size, elements, -1 if kind == "all_gather" else zeros))
            return original(group, *arguments, **keywords)

        return call

    for name in originals:
        setattr(ProcessGroup, name, counting(name, getattr(ProcessGroup, name)))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(ProcessGroup, name, original)


def transmitted_bytes(interface: str) -> int | None:
    """Bytes that a network device of this machine has sent so far, for all processes; None without Linux's counters."""
    devices = Path("/proc/net/dev")
    if not devices.is_file():
        return None
    lines = [line.split(":", 1) for line in devices.read_text().splitlines() if ":" in line]
    sent = {name.strip(): int(values.split()[8]) for name, values in lines}
    if interface not in sent:
        raise ValueError(f"--interface {interface}: must be one of {', '.join(sorted(sent))}")
    return sent[interface]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
