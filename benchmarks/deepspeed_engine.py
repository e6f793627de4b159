"""The DeepSpeed configuration and engines of `bench train`'s contenders, and what it shares with `bench quality`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from bert_pld.cluster.process_group import join_process_group
from bert_pld.training.optimizer import build_optimizer, parameter_groups

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of the whole model, as DeepSpeed casts it."""
_NEVER = 1 << 30


def deepspeed_json(dtype: str, zero_stage: int, micro_batch_size: int) -> dict[str, Any]:
    """The configuration: ZeRO, precision, fused AdamW, gradient clipping.

    The learning rate is small: on random tokens nothing is to be learnt, and nothing may overflow.
    """
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
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 1e-5, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.01},
        },
        "steps_per_print": _NEVER,
        # DeepSpeed's throughput timer waits for the device at every step.
        "timers": {"throughput": {"enabled": False}},
    }


def make_engine(model: nn.Module, config: Mapping[str, Any]) -> Any:
    """`deepspeed.initialize` with the AdamW that training makes: torch's fused one, biases and norms without decay."""
    import deepspeed

    for_deepspeed = {key: value for key, value in config.items() if key != "optimizer"}
    block = config["optimizer"]
    optimizer = build_optimizer(block, parameter_groups(model, block["params"]["weight_decay"]))
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config={**for_deepspeed, "zero_allow_untested_optimizer": True}
    )
    return engine


@contextlib.contextmanager
def single_rank(device_type: str) -> Iterator[torch.device]:
    """A process group of this process alone, gone at the end.

    Raises:
        ValueError: several ranks were started, or DeepSpeed runs on another kind of device here.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("this benchmark measures one rank: start it with python, without a launcher")
    if device_type == "cpu" and "deepspeed" not in sys.modules:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    was_there = torch.distributed.is_initialized()
    device = join_process_group()
    try:
        if device.type != device_type:
            raise ValueError(f"DeepSpeed runs on {device.type} here, not on {device_type}: see DS_ACCELERATOR")
        yield device
    finally:
        if not was_there:
            import deepspeed

            deepspeed.comm.destroy_process_group()


def conditions(device: torch.device) -> dict[str, Any]:
    """Where and with which releases something is measured."""
    import deepspeed
    import transformers

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "deepspeed_version": deepspeed.__version__,
        "transformers": transformers.__version__,
    }
