"""Checks of the `params` of an `optimizer` or a `scheduler` block, by the signature of the class that they are for."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

from bert_pld.config.deepspeed import whole
from bert_pld.config.errors import ConfigError, nearest

_ADAM: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
ADAM_DEFAULTS = {**_ADAM, "bias_correction": True, "adam_w_mode": True, "torch_adam": False, "amsgrad": False}
"""Keys of `Adam` and `AdamW` here; `torch_adam` is DeepSpeed's, and has no effect."""
MUON_DEFAULTS = {
    **{"lr": 1e-3, "muon_lr": 1e-3, "adam_lr": 1e-3, "momentum": 0.95, "nesterov": True, "ns_steps": 5},
    **{key: _ADAM[key] for key in ("weight_decay", "betas", "eps")},
}
_HIDDEN = (
    *("self", "params", "optimizer", "last_epoch", "last_batch_iteration", "verbose", "kwargs", "args"),
    "differentiable",  # no run differentiates through a step, and torch then refuses to change weights in place
)
_NOT_NEGATIVE = (
    *("lr", "muon_lr", "eps", "weight_decay", "warmup_min_lr", "warmup_max_lr", "cycle_min_lr", "cycle_max_lr"),
    *("lr_range_test_min_lr", "warmup_min_ratio", "cos_min_ratio"),
)
_STEPS = ("total_num_steps", "warmup_num_steps", "decay_step", "T_max", "total_steps", "step_size", "T_0")
_COUNT = re.compile(r"step|iter|count|^T_")
"""Names of integers; torch also writes 0 as the default of real numbers."""
_CHOICES = {"warmup_type": ("log", "linear")}
_PAIRS = {"betas": "two numbers in [0, 1)", "etas": "two numbers", "step_sizes": "two numbers"}
_FLAGS = ("foreach", "fused")


def defaults_of(cls: type) -> dict[str, Any]:
    """Return the parameters of a class that a JSON can give, with their defaults (`inspect.Parameter.empty`: none)."""
    parameters = inspect.signature(cls).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in _HIDDEN}


def check_params(
    params: Mapping[str, Any], defaults: Mapping[str, Any], where: str, name: str, allow_lists: bool = False
) -> dict[str, Any]:
    """Return a copy in which whole floats such as 1e3 are integers where the default is one.

    `where` is the path of the block, and `name` the class. With `allow_lists`, a number may be a list of numbers. A
    ConfigError names a key that the class does not have, whose value has another type than the default, that is out of
    range, or that is missing.
    """
    checked = {}
    for key, value in params.items():
        if key not in defaults:
            hint = "; use gradient_clipping" if key == "max_grad_norm" else ""
            raise ConfigError(
                f"{where}.{key}: unknown key for {name}{nearest(key, defaults)}{hint}; valid: {', '.join(defaults)}"
            )
        checked[key], allowed = _check_value(key, value, defaults[key])
        if not allowed and not allow_lists and isinstance(value, (list, tuple)) and key not in _PAIRS:
            allowed = "one number, without brackets"
        if allowed:
            raise ConfigError(f"{where}.{key}: {value!r}; must be {allowed}")
    missing = [key for key, default in defaults.items() if default is inspect.Parameter.empty and key not in params]
    if missing:
        raise ConfigError(f"{where}.{missing[0]}: missing; {name} needs it")
    return checked


def _check_value(key: str, value: Any, default: Any) -> tuple[Any, str]:
    """Return the value, and what is allowed if it is not."""
    choices = default if isinstance(default, tuple) and isinstance((*default, None)[0], str) else _CHOICES.get(key)
    if choices is not None:
        return value, "" if value in choices else f"one of {', '.join(choices)}"
    if key in _PAIRS:
        if not (isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))):
            return value, _PAIRS[key]
        value = [float(part) for part in value]  # torch wants both to be floats
        return value, "" if key != "betas" or all(0 <= part < 1 for part in value) else _PAIRS[key]
    if isinstance(default, bool):
        return value, "" if isinstance(value, bool) else "true or false"
    if isinstance(default, str):
        return value, "" if isinstance(value, str) else f"a word, such as {default}"
    if default is None and (value is None or (key in _FLAGS and isinstance(value, bool))):
        return value, ""
    numbers = value if isinstance(value, (list, tuple)) and value else [value]
    if not all(map(_is_number, numbers)):
        return value, "a number, without quotes"
    if key in _NOT_NEGATIVE and min(numbers) < 0:
        return value, ">= 0"
    if key == "adam_lr" and min(numbers) <= 0:
        return value, "> 0"
    if numbers is not value and (key in _STEPS or (isinstance(default, int) and _COUNT.search(key))):
        least, count = 1 if key in _STEPS and default != 0 else 0, whole(value)
        return count, "" if count is not None and count >= least else f"an integer >= {least}"
    return value, ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
