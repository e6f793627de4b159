"""Optimizers that we build ourselves: torch's fused Adam, Muon, Apex.

DeepSpeed builds the others from the JSON: `canonical_optimizer` tells which of them can be trained and resumed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from bert_pld.config import ConfigError
from bert_pld.config.errors import nearest
from bert_pld.model.block import GatedBlock
from bert_pld.training.block_params import ADAM_DEFAULTS, MUON_DEFAULTS, check_params, defaults_of
from bert_pld.training.muon import OrthogonalMomentum

OUR_OPTIMIZERS = ("Adam", "AdamW", "ApexFusedAdam", "ApexFusedLAMB", "Muon")
_OF_TORCH = ("SGD", "ASGD", "Adadelta", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop")
"""Optimizers of torch whose update is elementwise, so that ZeRO's flat partitions do not change it."""
_OF_DEEPSPEED = ("Lamb", "Lion")
_UNSUPPORTED = {
    **dict.fromkeys(("OneBitAdam", "ZeroOneAdam", "OneBitLamb"), "checkpoints cannot hold its compression errors"),
    **dict.fromkeys(("MuAdam", "MuAdamW", "MuSGD"), "it requires mup's base shapes, which this model does not have"),
    "Adafactor": "checkpoints cannot hold its factored moments",
    "LBFGS": "it evaluates the loss several times in a step",
    "SparseAdam": "it requires sparse gradients",
}
# Adam divides its moments by 1 − β^t. From this step on both divisors are exactly 1 in fp32 for every β up to 0.99998,
# so an Adam that starts to count here has no bias correction. The fp32 step counter stays exact for 15 million steps.
_STEP_PAST_BIAS_CORRECTION = 1_000_000.0


def parameter_groups(model: nn.Module, weight_decay: float, muon: bool = False) -> list[dict[str, Any]]:
    """Return groups of trainable parameters: matrices with weight decay, and vectors (biases and LayerNorm) without.

    With `muon` the matrices of the blocks are a group of their own, the first.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    of_muon = block_matrices(model) if muon else {}
    groups = [
        {"params": [p for n, p in named if p.dim() >= 2 and n not in of_muon], "weight_decay": weight_decay},
        {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    if not muon:
        return groups
    first = {"params": [p for n, p in named if n in of_muon], "weight_decay": weight_decay, "muon": True}
    return [first, *({**group, "muon": False} for group in groups)]


def block_matrices(model: nn.Module) -> dict[str, int]:
    """Return the names of the blocks' matrices, each with the number of matrices in it: three for q, k and v."""
    return {
        f"{prefix}.{name}": module.stacked_matrices.get(name, 1)
        for prefix, module in model.named_modules()
        if isinstance(module, GatedBlock)
        for name, parameter in module.named_parameters()
        if parameter.dim() == 2
    }


def canonical_optimizer(name: str, zero_stage: int, device_type: str) -> str:
    """Return an optimizer's name in the case in which it is documented, after checking that it can be used.

    Raises:
        ConfigError: it is unknown; it cannot be resumed, or not at this ZeRO stage; it requires a GPU.
    """
    valid = {known.lower(): known for known in (*OUR_OPTIMIZERS, *_OF_TORCH, *_OF_DEEPSPEED)}
    choices = ", ".join(valid.values())
    refused = {known.lower(): (known, reason) for known, reason in _UNSUPPORTED.items()}
    if name.lower() in refused:
        name, reason = refused[name.lower()]
        raise ConfigError(f"optimizer.type: {name} is not supported, because {reason}; valid: {choices}")
    if name.lower() not in valid:
        raise ConfigError(f"optimizer.type: {name!r} is unknown{nearest(name, valid.values())}; valid: {choices}")
    name = valid[name.lower()]
    if name in ("Lamb", "ApexFusedLAMB") and zero_stage > 0:
        raise ConfigError(
            f"optimizer.type: {name} needs the norm of each whole parameter, which ZeRO divides over ranks;"
            " use zero_optimization.stage 0, or another optimizer"
        )
    if name == "Adagrad" and zero_stage > 0:
        raise ConfigError(
            "optimizer.type: under ZeRO, DeepSpeed gives Adagrad one group of parameters, but a run has two, with and"
            " without weight decay; use zero_optimization.stage 0, or another optimizer"
        )
    if name in _OF_DEEPSPEED and device_type != "cuda":
        raise ConfigError(f"optimizer.type: DeepSpeed's {name} requires a GPU; use AdamW or Muon")
    return name


def check_optimizer_params(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked `params` of an optimizer, by its documented name; Apex checks its own.

    A ConfigError names a parameter that is unknown, has another type, or is out of range.
    """
    if name.startswith("ApexFused"):
        return dict(params)
    if name == "Muon":
        return check_params(params, MUON_DEFAULTS, "optimizer.params", name)
    if name in ("Adam", "AdamW"):
        return check_params(params, ADAM_DEFAULTS, "optimizer.params", name)
    cls = _deepspeed_class(name) if name in _OF_DEEPSPEED else getattr(torch.optim, name)
    params = check_params(params, defaults_of(cls), "optimizer.params", name)
    if name in _OF_TORCH:
        try:
            cls([nn.Parameter(torch.zeros(1))], **params)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ConfigError(f"optimizer.params: {error}") from error
    return params


def values_per_weight(params: Mapping[str, Any]) -> int:
    """Return how many values an optimizer keeps for each weight, at most; `params` are checked."""
    return 3 if params.get("amsgrad") or (params.get("centered") and params.get("momentum")) else 2


def _deepspeed_class(name: str) -> type:
    from deepspeed.ops.lamb import FusedLamb
    from deepspeed.ops.lion import FusedLion

    return {"Lamb": FusedLamb, "Lion": FusedLion}[name]


def build_optimizer(
    block: Mapping[str, Any], groups: Iterable[dict[str, Any]], cpu_adam: type[torch.optim.Optimizer] | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer of an `optimizer` block whose type is in `OUR_OPTIMIZERS`.

    `Adam` and `AdamW` are both Adam with decoupled weight decay, from torch's fused kernels, or from `cpu_adam`,
    DeepSpeed's class for states on the host. As in DeepSpeed, `adam_w_mode: false` makes it L2 for `Adam` and has no
    effect on `AdamW`. `bias_correction: false` is supported.
    `ApexFusedAdam` and `ApexFusedLAMB` require NVIDIA Apex. A mistake in `params`, or an Apex optimizer without NVIDIA
    Apex, raises a ConfigError.
    """
    name = block["type"]
    params = check_optimizer_params(name, block.get("params", {}))
    if name.startswith("ApexFused"):
        return _build_apex(name, params, groups)
    if name == "Muon":
        return _build_muon(params, groups)
    params.pop("torch_adam", None)
    bias_correction, decoupled = params.pop("bias_correction", True), params.pop("adam_w_mode", True) or name == "AdamW"
    if cpu_adam is not None and not params.get("amsgrad"):
        params.pop("amsgrad", None)
        return cpu_adam(groups, bias_correction=bias_correction, adamw_mode=decoupled, **params)
    optimizer = (torch.optim.AdamW if decoupled else torch.optim.Adam)(groups, fused=True, **params)
    if not bias_correction:
        optimizer.register_step_pre_hook(functools.partial(_skip_bias_correction, set()))
    return optimizer


def _build_muon(params: dict[str, Any], groups: Iterable[dict[str, Any]]) -> OrthogonalMomentum:
    """Build Muon. The group's rate is AdamW's, which schedulers set; Muon's stays in the same proportion to it."""
    rate = params.pop("lr", 1e-3)
    adam_rate, muon_rate = params.pop("adam_lr", rate), params.pop("muon_lr", rate)
    for key, allowed, bounds in (
        ("adam_lr" if adam_rate != rate else "lr", adam_rate > 0, "> 0"),
        ("momentum", 0 <= params.get("momentum", MUON_DEFAULTS["momentum"]) < 1, "in [0, 1)"),
        ("ns_steps", params.get("ns_steps", MUON_DEFAULTS["ns_steps"]) >= 1, ">= 1"),
    ):
        if not allowed:
            raise ConfigError(f"optimizer.params.{key}: {params.get(key, adam_rate)}; must be {bounds}")
    return OrthogonalMomentum(groups, lr=adam_rate, muon_ratio=muon_rate / adam_rate, **params)


def _skip_bias_correction(seen: set[int], optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Before a parameter's first step, count its steps so late that Adam's bias correction is 1.

    A state that comes from a checkpoint may count from 1, as that of DeepSpeed's Adam does, which needs no such trick.
    `seen` has the ids of the parameters whose state was looked at: each costs a wait for the device.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            state = optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                for moment in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group.get("amsgrad") else [])):
                    state[moment] = torch.zeros_like(parameter)
            if state["step"] < _STEP_PAST_BIAS_CORRECTION:
                state["step"] += _STEP_PAST_BIAS_CORRECTION


def _build_apex(name: str, params: dict[str, Any], groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
    try:
        from apex import optimizers
    except ImportError as error:
        raise ConfigError(
            f"optimizer.type: {name} needs NVIDIA Apex, which is not installed; build it from"
            " https://github.com/NVIDIA/apex with its CUDA extensions, or use AdamW"
        ) from error
    cls = {"ApexFusedAdam": optimizers.FusedAdam, "ApexFusedLAMB": optimizers.FusedLAMB}[name]
    try:
        return cls(groups, **params)
    except TypeError as error:
        raise ConfigError(f"optimizer.params: {name} does not accept these: {error}") from error
