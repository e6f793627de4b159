"""Making a run's DeepSpeed engine: with our optimizers, schedulers and layer dropping, and DeepSpeed's JSON keys."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from bert_pld.config import MONITOR_BLOCKS, RunConfig
from bert_pld.config.auto import DEFAULT_OPTIMIZER
from bert_pld.config.errors import ConfigError, explaining
from bert_pld.pld import initialize
from bert_pld.training.boundary import light_zero_block, lighten_boundary
from bert_pld.training.muon import OrthogonalMomentum
from bert_pld.training.nvme import keep_gradients_in_memory, keep_parameters_in_memory, prepare_swapping
from bert_pld.training.optimizer import (
    OUR_OPTIMIZERS,
    block_matrices,
    build_optimizer,
    canonical_optimizer,
    check_optimizer_params,
    parameter_groups,
    values_per_weight,
)
from bert_pld.training.schedulers import check_scheduler, scheduler_builder

_NOT_HERE = {
    "data_efficiency.data_routing.random_ltd.enabled": "use progressive_layer_drop with granularity 'token'",
    "data_efficiency.data_sampling.curriculum_learning.enabled": (
        "train short sequences first, and go on with --initialize_from"
    ),
    "torch_autocast.enabled": "use bf16 or fp16",
    "hybrid_engine.enabled": "it is for generating text, and the model is an encoder",
    "expert_parallel.enabled": "the model has no experts",
    "compile.deepcompile": "use model.kernels",
    "weight_quantization.quantized_initialization": "it is for inference",
    "tensor_parallel.autotp_size": "every rank needs the whole model; use zero_optimization",
    "sequence_parallel_size": "every rank needs whole sequences; use data parallelism",
    "zero_optimization.zenflow": "checkpoints cannot hold the gradients that it keeps for later steps",
    "zero_optimization.offload_optimizer.super_offload": "checkpoints cannot hold the states of its own process",
}
"""Keys of DeepSpeed that need another loop, data loader, model or checkpoint; a run would ignore or lose them."""


_NAMES_OF_TYPES = {"fp32": ("fp32", "float32"), "fp16": ("fp16", "float16", "half"), "bf16": ("bf16", "bfloat16")}


def make_engine(config: RunConfig, model: nn.Module) -> Any:
    """Return the engine of a resolved configuration; whatever DeepSpeed cannot set up is a ConfigError."""
    with explaining(config.source):
        return _set_up_engine(config, model)


def _set_up_engine(config: RunConfig, model: nn.Module) -> Any:
    from deepspeed.accelerator import get_accelerator
    from deepspeed.monitor.config import get_monitor_config

    refuse_unsupported(config)
    get_monitor_config({key: config.deepspeed.get(key, {}) for key in MONITOR_BLOCKS})
    for_deepspeed = {k: v for k, v in config.deepspeed.items() if k not in MONITOR_BLOCKS}
    # By default, DeepSpeed's throughput timer waits for the device at every step.
    for_deepspeed.setdefault("timers", {"throughput": {"enabled": False}})
    if "zero_optimization" in for_deepspeed:
        for_deepspeed["zero_optimization"] = light_zero_block(for_deepspeed["zero_optimization"])
    # The device to which DeepSpeed will move the model.
    optimizer_block = checked_optimizer(config, get_accelerator().device_name())
    kind, params = optimizer_block["type"], optimizer_block["params"]
    # DeepSpeed has tested ZeRO with its own Adams; tests/integration/checkpoint has the others.
    for_deepspeed.setdefault("zero_allow_untested_optimizer", True)
    groups = parameter_groups(model, params.get("weight_decay", 0.0), muon=kind == "Muon")
    matrices = block_matrices(model)  # ZeRO 3 takes the parameters' shapes away.
    optimizer = None
    if kind in OUR_OPTIMIZERS:
        cpu_adam = None
        if config.offload_device() != "none":
            cpu_adam = _cpu_adam() if kind in ("Adam", "AdamW") else None
            # Otherwise DeepSpeed would accept its own Adam alone.
            for_deepspeed["zero_force_ds_cpu_optimizer"] = False
        optimizer = build_optimizer(optimizer_block, groups, cpu_adam)
        for_deepspeed.pop("optimizer", None)
    elif "optimizer" in for_deepspeed:
        for_deepspeed["optimizer"] = optimizer_block
    make_scheduler = None
    if "scheduler" in for_deepspeed:
        for_deepspeed["scheduler"] = check_scheduler(for_deepspeed["scheduler"])
        make_scheduler = scheduler_builder(for_deepspeed["scheduler"], config.training.max_steps)
        if make_scheduler is not None:
            for_deepspeed.pop("scheduler")
    folder = None
    zero = for_deepspeed.get("zero_optimization", {})
    if config.offload_device("param") == "nvme":
        for_deepspeed["zero_optimization"] = zero = keep_parameters_in_memory(zero, groups)
    if config.offload_device() == "nvme":
        aio, values = for_deepspeed.get("aio", {}), values_per_weight(params)
        for_deepspeed["zero_optimization"], folder = prepare_swapping(zero, aio, groups, values)
    engine, *_ = initialize(
        model=model,
        optimizer=optimizer,
        model_parameters=None if optimizer is not None else groups,
        lr_scheduler=make_scheduler,
        config=dataclasses.replace(config, deepspeed=for_deepspeed),
    )
    engine.swap_folder = folder  # It lives as long as the engine.
    if folder is not None:
        keep_gradients_in_memory(engine)
    lighten_boundary(engine)
    if isinstance(optimizer, OrthogonalMomentum):
        optimizer.attach(engine, matrices)
    return engine


def checked_optimizer(config: RunConfig, device_type: str) -> dict[str, Any]:
    """Return the `optimizer` block with its documented name and checked params; a ConfigError if it cannot be used."""
    block = config.deepspeed.get("optimizer", DEFAULT_OPTIMIZER)
    kind = canonical_optimizer(block["type"], config.zero_stage, device_type)
    return {**block, "type": kind, "params": check_optimizer_params(kind, block.get("params", {}))}


def refuse_unsupported(config: RunConfig) -> None:
    """Raise a ConfigError for keys of DeepSpeed that need another loop, data loader or model than a run's."""
    for path, instead in _NOT_HERE.items():
        value: Any = config.deepspeed
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if (value and value != 1) or value is True:
            raise ConfigError(f"{path}: {json.dumps(value)}; pretraining does not support it; {instead}")
    given = config.deepspeed.get("data_types", {}).get("param_dtype")
    if given and given.removeprefix("torch.") not in _NAMES_OF_TYPES[config.precision]:
        raise ConfigError(f"data_types.param_dtype: {given}; the precision is {config.precision}, by fp16 and bf16")
    kind: Literal["optimizer", "param"]
    for kind, on_cpu in (("optimizer", 1), ("param", 3)):
        device, stage = config.offload_device(kind), config.zero_stage
        lowest = 3 if device == "nvme" else on_cpu
        if device != "none" and stage < lowest:
            stages = "stage 3" if lowest == 3 else "stage 1, 2 or 3"
            raise ConfigError(
                f"zero_optimization.offload_{kind}.device: {device} at stage {stage}; needs zero_optimization.{stages}"
            )
    zero = config.deepspeed.get("zero_optimization", {})
    ratio = zero.get("offload_optimizer", {}).get("ratio", 1)
    if ratio != 1:
        raise ConfigError(
            f"zero_optimization.offload_optimizer.ratio: {ratio}; must be 1, because checkpoints cannot hold the"
            " states of DeepSpeed's second optimizer"
        )
    if config.deepspeed.get("managed_gradient_accumulation") is False:
        raise ConfigError("managed_gradient_accumulation: false; must be true, because the engine counts a run's steps")


def _cpu_adam() -> type[torch.optim.Optimizer] | None:
    """Return DeepSpeed's Adam for states on the host, if every rank can build it; otherwise torch's Adam is used.

    On a machine without a GPU, nothing moves, and torch's Adam needs no compiler.
    """
    if not torch.cuda.is_available():
        return None
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.op_builder import CPUAdamBuilder

    try:
        CPUAdamBuilder().load(verbose=False)
        built = True
    except Exception:  # Compilers fail in many ways, and the other Adam gives the same result.
        built = False
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, built)
    return DeepSpeedCPUAdam if all(everywhere) else None
