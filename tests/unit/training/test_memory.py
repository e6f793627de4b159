"""Too little memory is one line that names the micro-batch; the memory of freed tensors is used again."""

from __future__ import annotations

import platform
import subprocess
import sys

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


def _page_faults_of_new_tensors():
    """Count the page faults of 25 times 4 tensors of 24 MB, the four freed together, in a new process."""
    lines = [
        "import resource, torch",
        "from bert_pld.training.memory import keep_freed_memory",
        "keep_freed_memory()",
        "def write(): [torch.ones(6_000_000) for _ in range(4)]",
        "for _ in range(5): write()",  # the heap may grow once more after the first time
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt",
        "for _ in range(25): write()",
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)",
    ]
    ran = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_new_tensors_get_the_memory_of_freed_ones_without_page_faults():
    """Without `keep_freed_memory`, it is 585,000 faults in three of four processes; what the heap ends with decides."""
    assert max(_page_faults_of_new_tensors() for _ in range(3)) < 1000
