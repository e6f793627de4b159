"""The processor, device and library versions of a measurement."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def processor_name() -> str:
    """The processor's model as Linux names it; on other systems, as Python names it.

    py-cpuinfo gives the same name, but takes more than a second: it runs several programs and times the processor.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def describe_device(device: torch.device) -> dict[str, Any]:
    """The device's name, the number of CPU threads and torch's version."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def describe_libraries(device: torch.device) -> dict[str, Any]:
    """`describe_device`, and the versions of DeepSpeed and transformers."""
    import deepspeed
    import transformers

    versions = {"deepspeed_version": deepspeed.__version__, "transformers": transformers.__version__}
    return {**describe_device(device), **versions}
