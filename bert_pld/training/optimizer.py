"""The optimizer a JSON names: torch's fused AdamW, NVIDIA Apex's where installed, or DeepSpeed's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from bert_pld.config import ConfigError

OUR_OPTIMIZERS = ("Adam", "AdamW", "ApexFusedAdam", "ApexFusedLAMB")
_ADAM_KEYS = ("lr", "betas", "eps", "weight_decay", "bias_correction", "adam_w_mode", "torch_adam", "amsgrad")

# Adam divides its moments by 1 − β^t. From this step on both divisors are 1 in fp32, so counting from here is Adam
# without bias correction, exactly; fp32 step counters stay integers for 16 M steps more.
_STEP_PAST_BIAS_CORRECTION = 1_000_000.0


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay; biases and LayerNorm, which are the vectors, without."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]


def build_optimizer(block: Mapping[str, Any], groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
    """Make the optimizer that an `optimizer` block of ours describes.

    `Adam` and `AdamW` are both decoupled Adam (as DeepSpeed's `Adam` is by default), from torch's fused kernels;
    `bias_correction: false` is honoured. `ApexFusedAdam` and `ApexFusedLAMB` need NVIDIA Apex.

    Raises:
        ConfigError: an unknown parameter, or Apex is asked for and not installed.
    """
    name, params = block["type"], dict(block.get("params", {}))
    if name.startswith("ApexFused"):
        return _build_apex(name, params, groups)
    unknown = sorted(set(params) - set(_ADAM_KEYS))
    if unknown:
        raise ConfigError(f"optimizer.params.{unknown[0]}: unknown key for {name}; valid: {', '.join(_ADAM_KEYS)}")
    bias_correction = params.pop("bias_correction", True)
    decoupled = params.pop("adam_w_mode", True)
    params.pop("torch_adam", None)
    if not decoupled:
        optimizer: torch.optim.Optimizer = torch.optim.Adam(groups, fused=True, **params)
    else:
        optimizer = torch.optim.AdamW(groups, fused=True, **params)
    if not bias_correction:
        optimizer.register_step_pre_hook(_skip_bias_correction)
    return optimizer


def _skip_bias_correction(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Give parameters without state the state of an Adam whose bias correction has worn off."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and not optimizer.state[parameter]:
                optimizer.state[parameter].update(
                    step=torch.tensor(_STEP_PAST_BIAS_CORRECTION, dtype=torch.float32, device=parameter.device),
                    exp_avg=torch.zeros_like(parameter),
                    exp_avg_sq=torch.zeros_like(parameter),
                )
                if group.get("amsgrad"):
                    optimizer.state[parameter]["max_exp_avg_sq"] = torch.zeros_like(parameter)


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
        raise ConfigError(f"optimizer.params: {name} does not take these: {error}") from error
