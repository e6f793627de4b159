"""How many programs of a compiled kernel fit on a multiprocessor of each GPU."""

from __future__ import annotations

import pytest

from bert_pld.kernels.machine_code import MULTIPROCESSORS, MachineCode, resident_programs


def programs(capability, shared_bytes=0, registers=32, num_warps=4):
    return resident_programs(MachineCode(registers, 0, 0, shared_bytes, 100, 0), num_warps, capability)


@pytest.mark.parametrize(
    ("capability", "kib", "warps"),
    [(80, 163, 64), (86, 99, 48), (89, 99, 48), (90, 227, 64), (100, 227, 64), (120, 99, 48)],
)
def test_limits_of_a_multiprocessor(capability, kib, warps):
    assert MULTIPROCESSORS[capability].program_shared_bytes == kib * 1024
    assert programs(capability, kib * 1024) == 1
    assert programs(capability, kib * 1024 + 1) == 0
    assert programs(capability, (kib - 1) * 1024 // 2) == 2
    assert programs(capability) == warps // 4
    assert programs(capability, num_warps=16) == warps // 16
    assert programs(capability, registers=250) == 2
