"""A clear error where a micro-batch does not fit into the device's memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bert_pld.config import BATCH_KEYS, RunConfig


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
