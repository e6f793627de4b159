"""Small host arrays on the device, without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray


def upload(values: NDArray[Any], device: torch.device | str) -> torch.Tensor:
    """Copy a host array to a device; from pinned memory, so that the host does not wait for the device."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
