"""The blocks' operations: `reference` is their specification; backends make them fast.

`select_backend` turns the configuration's `model.kernels` into what runs here, or says why it can't.
"""

from __future__ import annotations

import shutil
from typing import Literal

BACKENDS = ("reference", "compiled")


def select_backend(name: str, device_type: str) -> Literal["reference", "compiled"]:
    """Resolve `model.kernels` for a device.

    Args:
        name: `reference` (eager torch), `compiled` (torch.compile of each block), or `auto`: the fastest that works.
        device_type: `cuda`, `cpu`, …

    Raises:
        ValueError: the backend asked for cannot run here, and why.
    """
    if name == "auto":
        # Compiling costs a minute and gains a few per cent on a CPU; eager starts at once.
        return "compiled" if device_type == "cuda" else "reference"
    if name not in BACKENDS:
        raise ValueError(f"model.kernels: {name!r}; must be one of {', '.join(BACKENDS)}, auto")
    if name == "compiled" and device_type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise ValueError("model.kernels: 'compiled' on a CPU needs a C++ compiler and none is on PATH; use 'reference'")
    return name  # type: ignore[return-value]
