"""Optimizer states on a disk between steps (`offload_optimizer` to nvme): trained, saved and restored bitwise."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import python_async_io
from engine_states import restore, six_batches, snapshot, start, train

from bert_pld.config import ConfigError
from bert_pld.training.swap_folder import SwapFolder

pytestmark = pytest.mark.usefixtures("process_group")

# DeepSpeed swaps nothing under 1 MB: the matrices are two sub-groups on the disk, the vectors stay in memory. A
# sub-group's large gradients do not begin at a multiple of 512 bytes, after the 2 · 72 values of the segment embedding.
WIDE = {"hidden_size": 72, "intermediate_size": 4096, "num_layers": 2}
MUON = {"type": "Muon", "params": {"lr": 3e-3, "weight_decay": 0.01}}
AMSGRAD = {"type": "AdamW", "params": {"lr": 3e-3, "amsgrad": True}}
SGD = {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}
PIPELINED = {"pipeline_read": True, "pipeline_write": True}
SETTINGS = {
    "adamw": {},
    "read_ahead": {"pipeline_read": True},
    "muon": {"optimizer": MUON},
    "amsgrad": {"optimizer": AMSGRAD},
    "sgd": {"optimizer": SGD},
    "bf16": {"bf16": {"enabled": True}},
}


@pytest.fixture(scope="module")
def batches(corpus):
    return six_batches(corpus)


@pytest.fixture
def python_io(monkeypatch):
    """Files are read and written by Python, as DeepSpeed's async_io does it, which takes minutes to compile."""
    python_async_io.install(monkeypatch)


def stage_three(offload, **blocks):
    return {
        "model": WIDE,
        "zero_optimization": {
            "stage": 3, "reduce_bucket_size": 1_000_000, "sub_group_size": 600_000, "offload_optimizer": offload,
        },
        **blocks,
    }  # fmt: skip


def on_disk(folder, **keys):
    offload = {key: keys.pop(key) for key in list(keys) if key.startswith(("pipeline", "buffer"))}
    return stage_three({"device": "nvme", "nvme_path": str(folder), **offload}, **keys)


def in_memory(**keys):
    return stage_three({"device": "cpu"}, **{k: v for k, v in keys.items() if not k.startswith("pipeline")})


def check_that_states_on_disk_change_nothing(keys, batches, folder):
    reference = train(start(in_memory(**keys)), batches, 0, 6)
    engine = start(on_disk(folder, **keys))
    assert train(engine, batches, 0, 3) == reference[:3]
    tensors, scalars = snapshot(engine)
    assert train(engine, batches, 3, 6) == reference[3:]
    resumed = restore(on_disk(folder, **keys), tensors, scalars, folder, 3)
    assert train(resumed, batches, 3, 6) == reference[3:]


@pytest.mark.parametrize("setting", SETTINGS)
def test_states_on_disk_train_as_in_memory_and_are_restored_bitwise(setting, python_io, batches, tmp_path):
    check_that_states_on_disk_change_nothing(SETTINGS[setting], batches, tmp_path)


@pytest.mark.thorough  # compiling takes minutes
@pytest.mark.parametrize("keys", [{}, PIPELINED])
def test_deepspeed_s_async_io_keeps_states_on_disk_bitwise(keys, batches, tmp_path):
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        pytest.skip("DeepSpeed's async_io needs a C++ compiler and libaio's header (libaio-dev)")
    check_that_states_on_disk_change_nothing(keys, batches, tmp_path)


def test_large_tensors_are_on_the_disk_and_small_ones_in_memory(python_io, batches, tmp_path):
    engine = start(on_disk(tmp_path))
    train(engine, batches, 0, 1)
    sizes = {"": 0, "exp_avg": 0, "exp_avg_sq": 0}
    for path in tmp_path.rglob("*.swp"):
        if "gradient" not in path.name:
            sizes[path.name.rpartition("-")[0]] += path.stat().st_size
    assert sizes[""] == sizes["exp_avg"] == sizes["exp_avg_sq"] > 4 * (2 * 2 * 72 * 4096)
    on_host = [tensor.numel() for tensor in engine.optimizer.fp32_partitioned_groups_flat]
    assert on_host[:2] == [0, 0]
    assert 0 < on_host[-1] < 30_000


@pytest.mark.parametrize(("before", "after"), [(on_disk, in_memory), (in_memory, on_disk)])
def test_run_goes_on_between_disk_and_memory(before, after, python_io, batches, tmp_path):
    engine = start(before(tmp_path) if before is on_disk else before())
    train(engine, batches, 0, 3)
    tensors, scalars = snapshot(engine)
    resumed = restore(after(tmp_path) if after is on_disk else after(), tensors, scalars, tmp_path, 3)
    again, _ = snapshot(resumed)
    for kind, arrays in tensors.items():
        assert all(np.array_equal(array, again[kind][name]) for name, array in arrays.items()), kind
    assert train(resumed, batches, 3, 6) == train(engine, batches, 3, 6)


def test_files_of_a_killed_run_are_removed_and_those_of_others_stay(python_io, batches, tmp_path):
    other = start(on_disk(tmp_path))
    expected = train(other, batches, 0, 2)
    left = leave_a_folder(tmp_path)
    engine = start(on_disk(tmp_path))
    assert not left.exists()
    assert train(engine, batches, 0, 2) == expected
    assert train(other, batches, 2, 4) == train(engine, batches, 2, 4)


def leave_a_folder(parent):
    """Make a swap folder with files of wrong values in a process that is killed; return its path."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        folder = SwapFolder(parent)
        (folder.path / "zero_stage_3").mkdir()
        os.write(writer, str(folder.path).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    path = Path(os.read(reader, 4096).decode())
    os.close(reader)
    os.close(writer)
    assert (path / "zero_stage_3").is_dir()
    return path


def test_engine_s_files_are_removed_with_the_engine(python_io, batches, tmp_path):
    engine = start(on_disk(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    engine.swap_folder = None
    assert list(tmp_path.iterdir()) == []


def test_missing_library_is_one_line_with_the_package_and_the_alternative(monkeypatch, tmp_path):
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose=False: False)
    with pytest.raises(ConfigError, match="nvme needs DeepSpeed's async_io.*libaio-dev.*; or use cpu") as error:
        start(on_disk(tmp_path))
    assert "\n" not in str(error.value)


def test_compiler_s_error_is_in_the_line(python_io, monkeypatch, tmp_path):
    from deepspeed.ops.op_builder import AsyncIOBuilder

    def fail(self, verbose=False):
        raise RuntimeError(
            "Error building extension 'async_io': [1/3] c++ …\na.cpp:3:1: fatal error: libaio.h: No such"
        )

    monkeypatch.setattr(AsyncIOBuilder, "load", fail)
    with pytest.raises(ConfigError, match="cannot be built: a.cpp:3:1: fatal error: libaio.h: No such; or use cpu"):
        start(on_disk(tmp_path))


@pytest.mark.parametrize("place", ["nowhere", "file"])
def test_path_that_cannot_hold_files_is_one_line(place, python_io, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"offload_optimizer.nvme_path: .*{place}: no.* director.*; must be an exist"):
        start(on_disk(tmp_path / place))


def test_full_disk_is_an_error_before_anything_is_written(tmp_path):
    folder = SwapFolder(tmp_path)
    with pytest.raises(OSError, match="No space left|File too large"):
        folder.reserve(1 << 55)
    folder.release()
    assert [path.name for path in folder.path.iterdir()] == ["lock"]
