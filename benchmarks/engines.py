"""DeepSpeed configuration and engine, process group and compilation limits that contenders share."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from bert_pld.cluster.process_group import join_process_group
from bert_pld.training.boundary import light_zero_block, lighten_boundary
from bert_pld.training.muon import OrthogonalMomentum
from bert_pld.training.optimizer import block_matrices, build_optimizer, parameter_groups

_NEVER = 1 << 30
_MOST_RECOMPILATIONS = 64
"""Compiled versions of one function, over all contenders."""


def deepspeed_json(dtype: str, zero_stage: int, micro_batch_size: int, optimizer: str = "AdamW") -> dict[str, Any]:
    """The DeepSpeed configuration: ZeRO, precision, fused AdamW or our Muon, gradient clipping.

    The learning rate is small because random tokens teach nothing and the loss must not overflow.
    """
    params = {"lr": 1e-5, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.01}
    precision: dict[str, Any] = {}
    if dtype == "bf16":
        precision["bf16"] = {"enabled": True}
    elif dtype == "fp16":
        precision["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 12}
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": zero_stage},
        **precision,
        "optimizer": {"type": optimizer, "params": params},
        "steps_per_print": _NEVER,
        # DeepSpeed's throughput timer synchronizes with the device at every step.
        "timers": {"throughput": {"enabled": False}},
    }


def model_section(width: int, **others: Any) -> dict[str, Any]:
    """A model's section without a preset: heads of width 64, a feed-forward layer of 4 × width, and `others`."""
    shape = {"hidden_size": width, "num_attention_heads": max(width // 64, 1), "intermediate_size": 4 * width}
    return {"preset": None, **shape, **others}


def wrap_in_engine(model: nn.Module, config: Mapping[str, Any], light_boundary: bool = False) -> Any:
    """`deepspeed.initialize` for any module, with the optimizer of our training: no decay of biases and norms.

    With `light_boundary` a step ends as in our training, otherwise as DeepSpeed ends it.
    """
    import deepspeed

    block = config["optimizer"]
    matrices = block_matrices(model)
    groups = parameter_groups(model, block["params"]["weight_decay"], muon=block["type"] == "Muon")
    optimizer = build_optimizer(block, groups)
    settings = without_optimizer(config)
    if light_boundary:
        settings["zero_optimization"] = light_zero_block(settings["zero_optimization"])
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    if light_boundary:
        lighten_boundary(engine)
    if isinstance(optimizer, OrthogonalMomentum):
        optimizer.attach(engine, matrices)
    return engine


def without_optimizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """A DeepSpeed configuration for an engine that is given its optimizer as an object."""
    others = {key: value for key, value in config.items() if key != "optimizer"}
    return {**others, "zero_allow_untested_optimizer": True}


@contextlib.contextmanager
def single_rank(device_type: str) -> Iterator[torch.device]:
    """Yield the device of a process group of this process alone, which is destroyed at the end."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("this benchmark measures one rank: start it with python, without a launcher")
    if device_type == "cpu" and "deepspeed" not in sys.modules:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    was_initialized = torch.distributed.is_initialized()
    device = join_process_group()
    try:
        if device.type != device_type:
            raise ValueError(f"DeepSpeed uses {device.type}, not {device_type}: see DS_ACCELERATOR")
        yield device
    finally:
        if not was_initialized:
            import deepspeed

            deepspeed.comm.destroy_process_group()


def recompiling() -> contextlib.AbstractContextManager[None]:
    """Let torch.compile make a version for each contender and shape, and fail where it would silently run eagerly."""
    import torch._dynamo

    return torch._dynamo.config.patch(recompile_limit=_MOST_RECOMPILATIONS, fail_on_recompile_limit_hit=True)
