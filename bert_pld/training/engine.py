"""Making a run's DeepSpeed engine: with our optimizers, schedulers and layer dropping, and DeepSpeed's JSON keys."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from torch import nn

from bert_pld.config import MONITOR_BLOCKS, RunConfig
from bert_pld.pld import initialize
from bert_pld.training.muon import OrthogonalMomentum
from bert_pld.training.optimizer import (
    OUR_OPTIMIZERS,
    OUR_SCHEDULERS,
    block_matrices,
    build_optimizer,
    build_scheduler,
    canonical_optimizer,
    parameter_groups,
)


def make_engine(config: RunConfig, model: nn.Module) -> Any:
    """Return the engine of a resolved configuration."""
    for_deepspeed = {k: v for k, v in config.deepspeed.items() if k not in MONITOR_BLOCKS}
    # By default, DeepSpeed's throughput timer waits for the device at every step.
    for_deepspeed.setdefault("timers", {"throughput": {"enabled": False}})
    optimizer_block = for_deepspeed.get("optimizer") or {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01}}
    device_type = next(model.parameters()).device.type
    kind = canonical_optimizer(optimizer_block["type"], config.zero_stage, device_type)
    optimizer_block = {**optimizer_block, "type": kind}
    # DeepSpeed has tested ZeRO with its own Adams; tests/integration/checkpoint has the others.
    for_deepspeed.setdefault("zero_allow_untested_optimizer", True)
    weight_decay = optimizer_block.get("params", {}).get("weight_decay", 0.0)
    groups = parameter_groups(model, weight_decay, muon=kind == "Muon")
    matrices = block_matrices(model)  # ZeRO 3 takes the parameters' shapes away.
    optimizer = None
    if kind in OUR_OPTIMIZERS:
        optimizer = build_optimizer(optimizer_block, groups)
        for_deepspeed.pop("optimizer", None)
    scheduler_block, make_scheduler = for_deepspeed.get("scheduler"), None
    if scheduler_block:
        automatic = {
            "total_num_steps": config.training.max_steps,
            "warmup_max_lr": optimizer_block.get("params", {}).get("lr", 1e-3),
        }
        params = {k: automatic.get(k, v) if v == "auto" else v for k, v in scheduler_block.get("params", {}).items()}
        scheduler_block = for_deepspeed["scheduler"] = {**scheduler_block, "params": params}
    if scheduler_block and scheduler_block["type"] in OUR_SCHEDULERS:
        for_deepspeed.pop("scheduler")
        make_scheduler = functools.partial(build_scheduler, scheduler_block, config.training.max_steps)
    engine, *_ = initialize(
        model=model,
        optimizer=optimizer,
        model_parameters=None if optimizer is not None else groups,
        lr_scheduler=make_scheduler,
        config=dataclasses.replace(config, deepspeed=for_deepspeed),
    )
    if isinstance(optimizer, OrthogonalMomentum):
        optimizer.attach(engine, matrices)
    return engine
