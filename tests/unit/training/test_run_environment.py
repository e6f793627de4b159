"""Runs that tests fork off one server must be able to use a GPU.

A CPU build of torch cannot create a CUDA context, so the fork itself is shown on a GPU only (tests/gpu). Shown here is
its cause: whether the question that DeepSpeed's import asks goes to the CUDA driver, which a fork does not survive.
"""

from __future__ import annotations

import pytest
import torch
from runs import clean_environment

pytestmark = pytest.mark.skipif(torch.cuda.is_initialized(), reason="this process has already initialised CUDA")

NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"


@pytest.fixture
def asked(monkeypatch):
    """What `torch.cuda` asks about devices, in order, on a pretended machine with one GPU."""
    questions = []

    def answer(name):
        return lambda: questions.append(name) or 1

    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", answer("driver"), raising=False)
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", answer("nvml"))
    monkeypatch.setattr(torch.cuda, "_cached_device_count", None)
    return questions


def is_cuda_chosen() -> bool:
    """The condition under which DeepSpeed chooses CUDA on import (`real_accelerator.py`)."""
    return torch.cuda.device_count() > 0 and torch.cuda.is_available()


def test_environment_of_runs_keeps_the_cuda_driver_uninitialised(asked, monkeypatch):
    monkeypatch.setenv(NVML_CHECK, clean_environment().get(NVML_CHECK, ""))
    assert is_cuda_chosen()
    assert asked == ["nvml", "nvml"]


def test_without_the_variable_the_cuda_driver_is_asked(asked, monkeypatch):
    monkeypatch.delenv(NVML_CHECK, raising=False)
    assert is_cuda_chosen()
    assert "driver" in asked
