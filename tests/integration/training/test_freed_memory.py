"""The memory of freed tensors is used again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest


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
