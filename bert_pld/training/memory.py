"""Memory of a run: freed memory is kept for the next tensors, and a micro-batch that does not fit is a clear error."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bert_pld.config import BATCH_KEYS, RunConfig

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 2**25
"""The largest threshold that glibc accepts, in bytes; a larger tensor is mapped and unmapped each time."""


def keep_freed_memory() -> None:
    """Make glibc keep freed host memory for the next tensors, as torch does with a GPU's.

    By default glibc returns large blocks to the system, which clears every page that a step writes anew: 5,000 page
    faults a step for a model of 8 × 128. Without glibc nothing happens.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        set_option(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def naming_the_micro_batch(config: RunConfig) -> Iterator[None]:
    """Turn torch's error about too little memory into a ValueError of one line that says what needs less."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        micro_batch = config.deepspeed[BATCH_KEYS[1]]
        automatic = config.training.max_micro_batch_size is not None
        key = "training.max_micro_batch_size" if automatic else BATCH_KEYS[1]
        raise ValueError(
            f"out of memory with micro-batches of {micro_batch} × {config.data.seq_length} tokens; use a smaller one"
            f" (--set {key}={max(1, micro_batch // 2)}) or --set model.activation_checkpointing=true;"
            " python -m bert_pld.plan estimates the memory of both"
        ) from error
