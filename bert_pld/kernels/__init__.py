"""The blocks' operations: `reference` is their specification; backends make them fast.

`select_backend` turns the configuration's `model.kernels` into what runs here, or says why it can't.
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
"""A row is normalised in the registers of one program."""


def select_backend(name: str, device_type: str, hidden_size: int) -> Backend:
    """Resolve `model.kernels` for a device.

    Args:
        name: `reference` (eager torch), `compiled` (torch.compile of each block), `triton` (fused kernels), or `auto`:
            on a GPU the first of triton, compiled, reference that can run; on a CPU, where compiling costs a minute
            and gains a few per cent, reference.
        device_type: `cuda`, `cpu`, …
        hidden_size: of the model.

    Raises:
        ValueError: the backend asked for cannot run here, and why.
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
    """Why a backend cannot run, if it can't."""
    if name == "reference":
        return None
    if name == "compiled":
        if device_type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            return "on a CPU needs a C++ compiler and none is on PATH"
        if device_type == "cuda" and importlib.util.find_spec("triton") is None:
            return "on a GPU needs the package triton, which is not installed"
        return None
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    if hidden_size > TRITON_MAX_WIDTH:
        return f"takes a hidden_size of at most {TRITON_MAX_WIDTH}, and it is {hidden_size}"
    if device_type != "cuda":
        interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
        return None if interpreted else f"needs an NVIDIA GPU, and this run is on {device_type}"
    capability = torch.cuda.get_device_capability()
    if capability < _TRITON_CAPABILITY:
        return "needs a GPU of compute capability 8.0 or newer, and this one has {}.{}".format(*capability)
    return None
