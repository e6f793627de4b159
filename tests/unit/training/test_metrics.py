"""The peak rates that the metric `mfu` refers to."""

from __future__ import annotations

import pytest

from bert_pld.training.metrics import peak_tflops_of


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peak_of_a_gpu_is_that_of_its_own_data_sheet(name, tflops):
    assert peak_tflops_of(name) == tflops
