"""The blocks' operations: `reference` is their specification, the backends are faster implementations.

`select_backend` resolves the configuration's `model.kernels` for this machine.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Literal

import torch

BACKENDS = ("reference", "compiled", "triton")
Backend = Literal["reference", "compiled", "triton"]

_TRITON_CAPABILITY = (8, 0)
TRITON_MAX_WIDTH = 8192
"""Largest hidden size of the Triton kernels: one program normalises a row in its registers."""


def select_backend(name: str, device_type: str, hidden_size: int) -> Backend:
    """Resolve `model.kernels` for a device.

    Args:
        name: `reference` (eager torch), `compiled` (torch.compile of each block), `triton` (fused kernels), or `auto`:
            on a GPU the first of triton, compiled and reference that can run; on a CPU reference, because there
            compiling takes a minute and gains a few per cent.
        device_type: `cuda`, `cpu`, …
        hidden_size: the model's hidden size.

    Raises:
        ValueError: the requested backend cannot run on this machine; the message gives the reason.
    """
    if name == "auto":
        candidates: tuple[Backend, ...] = ("triton", "compiled") if device_type == "cuda" else ()
        return next((b for b in candidates if _obstacle(b, device_type, hidden_size) is None), "reference")
    if name not in BACKENDS:
        raise ValueError(f"model.kernels: {name!r}; must be one of {', '.join(BACKENDS)}, auto")
    obstacle = _obstacle(name, device_type, hidden_size)
    if obstacle is not None:
        raise ValueError(f"model.kernels: {name!r} {obstacle}; use 'auto' or 'reference'")
    return name  # type: ignore[return-value]


def _obstacle(name: str, device_type: str, hidden_size: int) -> str | None:
    """Return the reason why a backend cannot run, or None."""
    if name == "reference":
        return None
    if name == "compiled":
        if device_type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            return "requires a C++ compiler on a CPU, and neither g++ nor clang++ is on PATH"
        if device_type == "cuda" and importlib.util.find_spec("triton") is None:
            return "requires the package triton on a GPU, and it is not installed"
        return None
    if importlib.util.find_spec("triton") is None:
        return "requires the package triton, which is not installed"
    if hidden_size > TRITON_MAX_WIDTH:
        return f"supports a hidden_size of at most {TRITON_MAX_WIDTH}, and it is {hidden_size}"
    if device_type != "cuda":
        interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
        return None if interpreted else f"requires an NVIDIA GPU, and the device is {device_type}"
    capability = torch.cuda.get_device_capability()
    if capability < _TRITON_CAPABILITY:
        return "requires a GPU of compute capability 8.0 or newer, and this one has {}.{}".format(*capability)
    return None
