"""Optimizer states that DeepSpeed keeps on a disk between steps: ZeRO 3 with `offload_optimizer` to `nvme`.

While they are on the disk, a flat tensor of the optimizer and its states hold no values. Saving and loading bring one
flat tensor with its states at a time into host memory. DeepSpeed writes the states to the disk when the flat tensor has
states for the first time, so all of its states are loaded together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def in_host_memory(engine: Any, owner: torch.Tensor, changed: bool = False) -> Iterator[None]:
    """Bring a tensor that the optimizer updates, and its states, from the disk for a block; elsewhere do nothing.

    With `changed`, they are written to the disk at the end of the block.
    """
    optimizer, index = engine.optimizer, _index_on_disk(engine.optimizer, owner)
    if index is None:
        yield
        return
    optimizer._optimizer_states_and_gradient_swap_in(index)
    yield
    if changed:
        optimizer._optimizer_states_and_gradient_swap_out(index)
    else:
        optimizer._release_swap_buffers(index)


def _index_on_disk(optimizer: Any, owner: torch.Tensor) -> int | None:
    """Return the number of DeepSpeed's sub-group if it is on the disk; small ones stay in host memory."""
    if not getattr(optimizer, "swap_optimizer", False):
        return None
    index = next(i for i, tensor in enumerate(optimizer.fp32_partitioned_groups_flat) if tensor is owner)
    return index if optimizer._swappable_optimizer_subgroup(index) else None
