"""Fixtures of the kernel tests: interpreted kernels on the CPU, compiled kernels on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
from triton.runtime import interpreter

from bert_pld.kernels import tiles


@pytest.fixture(autouse=True)
def interpreter_rounds_bf16_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Triton's interpreter round to nearest even like a GPU; it truncates, which doubles the error."""
    convert = interpreter._convert_float
    fp8 = {triton.language.float8e4nv: torch.float8_e4m3fn, triton.language.float8e5: torch.float8_e5m2}

    def rounding(values, from_dtype, to_dtype, mode):
        if from_dtype == triton.language.float32 and to_dtype == triton.language.bfloat16:
            wide = torch.from_numpy(np.ascontiguousarray(values))
            return wide.bfloat16().view(torch.int16).numpy().view(np.uint16)
        if from_dtype == triton.language.float32 and to_dtype in fp8:
            return torch.from_numpy(np.ascontiguousarray(values)).to(fp8[to_dtype]).view(torch.uint8).numpy()
        return convert(values, from_dtype, to_dtype, mode)

    monkeypatch.setattr(interpreter, "_convert_float", rounding)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Return a device on which this process can launch Triton kernels."""
    if request.param == "cpu" and not triton.knobs.runtime.interpret:
        pytest.skip("kernels are interpreted only where TRITON_INTERPRET=1 (set where there is no GPU)")
    return request.param


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpret kernels with the tiles of a GPU, so that a program of a reducing kernel loops over several."""
    monkeypatch.setattr(tiles, "INTERPRETED_TILES", 1000)
    monkeypatch.setattr(tiles, "INTERPRETED_PROGRAMS", 1)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new memory with NaN, so that an output that a kernel does not write is detected."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-(2**20))

    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: poison(empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: poison(empty_like(*args, **kwargs)))
