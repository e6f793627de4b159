"""Offloading to a disk (`device: nvme`): what it needs, tried before the engine is made.

DeepSpeed ignores the errors of a disk: values that it could not read or write are wrong in later steps. It aborts the
process if it cannot lock memory. So disk and memory are tried first.
"""

from __future__ import annotations

import ctypes
import errno
import inspect
import math
import mmap
import os
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from bert_pld.config import ConfigError
from bert_pld.config.deepspeed import whole
from bert_pld.training.swap_folder import UNIT_BYTES, SwapFolder

_KEY = "zero_optimization.offload_optimizer"
_BYTES_PER_VALUE = 4
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, a quota or a file that is full."""


def prepare_swapping(
    zero: Mapping[str, Any], aio: Mapping[str, Any], groups: Iterable[Mapping[str, Any]], states: int
) -> tuple[dict[str, Any], SwapFolder]:
    """Return a `zero_optimization` block whose `nvme_path` is a folder of this engine alone, and this folder.

    All ranks call it together, before the engine is made. A ConfigError names what a rank lacks.

    Args:
        zero: the block, at stage 3, whose `offload_optimizer` has the device nvme.
        aio: DeepSpeed's block for the disk.
        groups: the optimizer's parameter groups; a sub-group is what it updates at once.
        states: number of values that the optimizer keeps for each weight.
    """
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    checked = DeepSpeedZeroConfig(**zero)
    offload = checked.offload_optimizer
    if offload.nvme_path is None:
        raise ConfigError(f"{_KEY}.nvme_path: missing; give a folder on a local disk")
    # Before anything is compiled for minutes.
    _raise_together(_what_path_lacks(offload.nvme_path))
    for key, unit in (("block_size", UNIT_BYTES), ("queue_depth", 1), ("intra_op_parallelism", 1)):
        value = whole(aio.get(key, unit))
        if not isinstance(value, int) or value < 1 or value % unit:
            allowed = "at least 1" if unit == 1 else f"a multiple of {unit}"
            raise ConfigError(f"aio.{key}: {aio[key]!r}; must be an integer, {allowed}")
    # Weights, gradient and states of one sub-group, of one that is read ahead, and of one that is being written.
    needed = (2 + states) * (1 + offload.pipeline_read + offload.pipeline_write)
    is_given = "buffer_count" in offload.model_fields_set
    buffers = offload.buffer_count if is_given else max(needed, offload.buffer_count)
    if buffers < needed:
        raise ConfigError(f"{_KEY}.buffer_count: {buffers}; must be at least {needed} with this optimizer")
    shares = _shares_of_rank(groups)
    largest = min(sum(shares), int(checked.sub_group_size) + max(shares))
    _raise_together(_what_deepspeed_lacks() or _what_async_io_lacks())
    _raise_together(_what_memory_lacks(buffers * largest * _BYTES_PER_VALUE))
    folder, failure = None, ""
    size = (2 + states) * sum(shares) * _BYTES_PER_VALUE
    try:
        folder = SwapFolder(offload.nvme_path)
        folder.reserve(size)
    except OSError as error:
        failure = f"{_KEY}.nvme_path: {offload.nvme_path}: {_reason(error, size)}"
    _raise_together(failure)
    assert folder is not None
    folder.release()
    own = {**zero["offload_optimizer"], "buffer_count": buffers, "nvme_path": str(folder.path)}
    return {**zero, "offload_optimizer": own}, folder


def keep_gradients_in_memory(engine: Any) -> None:
    """Leave gradients in memory between backward and step, where they take no more than at the end of backward.

    DeepSpeed would read a gradient from the disk to wherever in a buffer the gradients before it end. On many disks a
    direct read to an address that is no multiple of 512 bytes fails, unnoticed, and leaves the buffer as it was.
    """
    swapper = engine.optimizer.optimizer_swapper

    def keep(parameter: Any, gradient_offsets: Iterable[int], gradient_tensors: Iterable[Any]) -> None:
        kept = swapper.swap_params_info[parameter.ds_id].unswapped_gradients
        kept.update(zip(gradient_offsets, gradient_tensors, strict=True))

    swapper.swap_out_gradients = keep


def keep_parameters_in_memory(zero: Mapping[str, Any], groups: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a `zero_optimization` block with `offload_param` to cpu in place of nvme.

    DeepSpeed puts only the parameters beyond `max_in_cpu`, by default a billion on each rank, on the disk. With more of
    them it fails in its bookkeeping of buffers, and on a CPU it casts them to bf16; this is a ConfigError.
    """
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    offload, needed = DeepSpeedZeroConfig(**zero).offload_param, sum(_shares_of_rank(groups))
    if offload.max_in_cpu < needed:
        raise ConfigError(
            f"zero_optimization.offload_param.max_in_cpu: {offload.max_in_cpu}; must be at least {needed}, because"
            " DeepSpeed cannot train with parameters on the disk"
        )
    return {**zero, "offload_param": {"device": "cpu", "pin_memory": offload.pin_memory}}


def _shares_of_rank(groups: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return how many values of each parameter a rank has at stage 3."""
    ranks = dist.get_world_size()
    return [math.ceil(parameter.numel() / ranks) for group in groups for parameter in group["params"]]


def _raise_together(failure: str) -> None:
    """Raise on all ranks the first rank's failure, if any has one, so that none waits for another."""
    failures: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    for rank, text in enumerate(failures):
        if text:
            raise ConfigError(f"{text} (rank {rank})" if len(failures) > 1 else text)


def _what_path_lacks(path: str) -> str:
    """Return why a path is no folder, or nothing."""
    if os.path.isdir(path):
        return ""
    number = errno.ENOTDIR if os.path.exists(path) else errno.ENOENT
    return f"{_KEY}.nvme_path: {path}: {_reason(OSError(number, os.strerror(number)), 0)}"


def _what_deepspeed_lacks() -> str:
    """Return why this release of DeepSpeed cannot swap here, or nothing; older ones need torch's pinned memory."""
    from deepspeed import __version__
    from deepspeed.runtime.swap_tensor.utils import SwapBufferManager

    if torch.cuda.is_available() or "aio_handle" in inspect.signature(SwapBufferManager).parameters:
        return ""
    return f"{_KEY}.device: nvme needs a GPU with DeepSpeed {__version__}; use a newer release, or cpu"


def _what_async_io_lacks() -> str:
    """Build DeepSpeed's module for the disk, which takes minutes once; return why it cannot be built, or nothing."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    builder = AsyncIOBuilder()
    missing = "" if shutil.which(os.environ.get("CXX", "c++")) else "a C++ compiler is missing"
    if not missing and not builder.is_compatible(verbose=False):
        missing = (
            "the header libaio.h is missing (Debian: libaio-dev; Fedora: libaio-devel; else set CFLAGS and LDFLAGS)"
        )
    if not missing:
        try:
            builder.load(verbose=False)
        except Exception as error:  # Compilers fail in many ways.
            lines = [" ".join(line.split()) for line in f"{type(error).__name__}: {error}".splitlines()]
            missing = next((line for line in lines if " error: " in line), lines[0])[:300]
    return missing and f"{_KEY}.device: nvme needs DeepSpeed's async_io, which cannot be built: {missing}; or use cpu"


def _what_memory_lacks(size: int) -> str:
    """Return why DeepSpeed could not lock its buffers in memory, or nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, size) as memory:
        first = ctypes.c_char.from_buffer(memory)
        address, length = ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size)
        code = libc.mlock(address, length)
        failure = "" if code == 0 else os.strerror(ctypes.get_errno())
        libc.munlock(address, length)
        del first
    return failure and (
        f"{_KEY}.device: nvme needs to lock {size / 1e6:,.0f} MB in memory: {failure}; raise the limit (ulimit -l, or"
        " --ulimit memlock=-1 of a container), or use a smaller sub_group_size, or cpu"
    )


def _reason(error: OSError, size: int) -> str:
    if error.errno == errno.EINVAL:
        return "not for direct reading and writing (O_DIRECT) in multiples of 1 kB; give a folder on another local disk"
    text = (error.strerror or str(error)).lower()
    if error.errno in _FULL:
        return f"{text}; each rank needs {size / 1e6:,.0f} MB"
    return f"{text}; must be an existing folder, in which files can be written"
