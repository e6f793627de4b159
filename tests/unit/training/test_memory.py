"""Too little memory is one line that names the micro-batch."""

from __future__ import annotations

import pytest
import torch

from bert_pld.config import load_config
from bert_pld.training.memory import naming_the_micro_batch


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
@pytest.mark.parametrize("key", ["train_micro_batch_size_per_gpu", "training.max_micro_batch_size"])
def test_too_little_memory_names_the_key_that_set_the_micro_batch(error, key):
    config = load_config({"train_micro_batch_size_per_gpu": 64}, [f"{key}=64"])
    with pytest.raises(ValueError, match=rf"micro-batches of 64 × 128 tokens.*--set {key}=32") as raised:  # noqa: SIM117
        with naming_the_micro_batch(config):
            raise error
    assert raised.value.__cause__ is error


def test_other_errors_pass_unchanged():
    config = load_config({"train_micro_batch_size_per_gpu": 64})
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"), naming_the_micro_batch(config):
        raise RuntimeError("shapes do not match")
