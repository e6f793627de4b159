"""What `"auto"` means in DeepSpeed's keys.

The Trainer of transformers resolves it from its arguments; we resolve it from the other keys of the configuration.

The table of docs/configuration.md is the same rule in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bert_pld.config.deepspeed import AUTO, BATCH_KEYS, MONITOR_BLOCKS
from bert_pld.config.errors import ConfigError

DEFAULT_OPTIMIZER = {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01}}
"""The optimizer of a run without an `optimizer` block."""
_WARMUP_SHARE = 0.02  # the paper's
_DECAY_SHARE = 0.1

# Blocks in which DeepSpeed itself reads "auto" as its default, except for the keys that decide what runs at all.
_DEEPSPEED_DEFAULTS = (
    *("zero_optimization", "fp16", "bf16", "timers", "comms_logger", "compile", "hybrid_engine"),
    *MONITOR_BLOCKS,
)
_DECISIVE = ("enabled", "stage", "device")
# Here "auto" is a value of DeepSpeed's own, or is resolved for the number of ranks.
_KEPT = ("data_types", "pipeline", "autotuning", "checkpoint", "data_efficiency", *BATCH_KEYS)


def resolve_auto(
    deepspeed: Mapping[str, Any], where: str, max_steps: int | None, hidden_size: int | None
) -> tuple[dict[str, Any], list[str]]:
    """Return DeepSpeed's keys with a value for each "auto", and for each a line that states the value.

    `max_steps` and `hidden_size` are None where the run is not ours. A ConfigError names a key without a rule.
    """
    values, notices = _resolve_precision(deepspeed, where)
    optimizer = values.get("optimizer", DEFAULT_OPTIMIZER).get("params", {})
    lr = optimizer.get("lr", 1e-3)
    lr = 1e-3 if lr == AUTO else lr
    peak = group_rate({**values.get("optimizer", DEFAULT_OPTIMIZER), "params": {**optimizer, "lr": lr}})
    rules: dict[str, Any] = {
        "gradient_clipping": 1.0,
        "optimizer.params.lr": 1e-3,
        "optimizer.params.muon_lr": lr,
        "optimizer.params.adam_lr": lr,
        "optimizer.params.betas": [0.9, 0.999],
        "optimizer.params.eps": 1e-8,
        "optimizer.params.weight_decay": 0.01,
        "optimizer.params.momentum": 0.95 if values.get("optimizer", {}).get("type", "").lower() == "muon" else 0.9,
        "scheduler.params.warmup_min_lr": 0.0,
        "scheduler.params.warmup_max_lr": peak,
        "scheduler.params.warmup_min_ratio": 0.0,
        "scheduler.params.cos_min_ratio": 1e-4,
    }
    if max_steps is not None:
        rules["scheduler.params.total_num_steps"] = max_steps
        rules["scheduler.params.warmup_num_steps"] = default_warmup(max_steps)
        rules["scheduler.params.decay_num_steps"] = default_decay(max_steps)
    if hidden_size is not None:
        rules["zero_optimization.reduce_bucket_size"] = hidden_size**2
        rules["zero_optimization.stage3_prefetch_bucket_size"] = int(0.9 * hidden_size**2)
        rules["zero_optimization.stage3_param_persistence_threshold"] = 10 * hidden_size
    return _replace(values, "", rules, where, notices), notices


def default_warmup(max_steps: int) -> int:
    """Return in how many steps of a run the learning rate rises by default."""
    return max(1, round(_WARMUP_SHARE * max_steps))


def default_decay(max_steps: int) -> int:
    """Return in how many steps of a run a stable learning rate falls by default."""
    return round(_DECAY_SHARE * max_steps)


def group_rate(optimizer: Mapping[str, Any]) -> Any:
    """Return the learning rate of an `optimizer` block that schedules change: of Muon's two, that of AdamW."""
    params = optimizer.get("params", {})
    own = params.get("adam_lr") if str(optimizer.get("type", "")).lower() == "muon" else None
    return params.get("lr", 1e-3) if own in (None, AUTO) else own


def _resolve_precision(deepspeed: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Resolve `enabled` of fp16 and bf16: an automatic precision is bf16, unless one of the two is on."""
    values = dict(deepspeed)
    given = {name: values.get(name, {}).get("enabled") for name in ("fp16", "bf16")}
    if given["fp16"] is True and given["bf16"] is True:
        raise ConfigError(f"{where}: fp16.enabled and bf16.enabled: both true; enable one of the two")
    if AUTO not in given.values():
        return values, []
    if given["bf16"] is False:
        raise ConfigError(f"{where}: fp16.enabled: 'auto' with bf16 off; must be true, or false for fp32")
    for name, chosen in (("fp16", given["fp16"] is True), ("bf16", given["fp16"] is not True)):
        if name in values or chosen:
            values[name] = {**values.get(name, {}), "enabled": chosen}
    return values, [f"precision 'auto': {'fp16' if given['fp16'] is True else 'bf16'}"]


def _replace(values: Mapping[str, Any], path: str, rules: Mapping[str, Any], where: str, notices: list[str]) -> Any:
    replaced: dict[str, Any] = {}
    for key, value in values.items():
        own = f"{path}.{key}" if path else str(key)
        block = own.partition(".")[0]
        if block in _KEPT:
            replaced[key] = value
        elif isinstance(value, Mapping):
            replaced[key] = _replace(value, own, rules, where, notices)
        elif value != AUTO:
            replaced[key] = value
        elif own in rules:
            replaced[key] = rules[own]
            notices.append(f"{own} 'auto': {rules[own]}")
        elif own == "steps_per_print" or (block in _DEEPSPEED_DEFAULTS and path and key not in _DECISIVE):
            continue
        else:
            raise ConfigError(
                f"{where}: {own}: 'auto' has no rule here; give a value, or leave the key out for DeepSpeed's default"
            )
    return replaced
