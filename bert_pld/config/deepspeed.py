"""DeepSpeed's keys of a run's JSON: their shapes and ranges, removed features, spelling. DeepSpeed checks the rest.

`check_deepspeed` accepts what every supported release accepts, and brings it into one form, so that our code and
DeepSpeed read the same: null counts as absent, quoted booleans become booleans, old names become the present ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bert_pld.config.errors import ConfigError, nearest

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
MONITOR_BLOCKS = ("tensorboard", "wandb", "csv_monitor", "comet")
AUTO = "auto"

# Block → its keys, each with a value of its type (None: any type). A block has None here if DeepSpeed checks it with a
# class of pydantic's. DeepSpeed does not check the others: a quoted "false" in them would count as true.
_BLOCKS: dict[str, Mapping[str, Any] | None] = {
    "optimizer": {"type": "", "params": None, "legacy_fusion": False},
    "scheduler": {"type": "", "params": None},
    "fp16": {
        **{"enabled": False, "auto_cast": False, "loss_scale": 0.0, "fp16_master_weights_and_grads": False},
        **dict.fromkeys(("initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale"), 1),
        "consecutive_hysteresis": False,
    },
    "bf16": {
        **dict.fromkeys(("enabled", "immediate_grad_update", "check_grad_overflow", "check_overflow"), False),
        **dict.fromkeys(("bf16_master_weights_and_grads", "bf16_optimizer_states"), False),
    },
    **dict.fromkeys(("zero_optimization", "comms_logger", *MONITOR_BLOCKS)),
    **dict.fromkeys(("hybrid_engine", "compile", "tensor_parallel", "expert_parallel", "weight_quantization")),
    **dict.fromkeys(("autotuning", "pipeline", "datastates_ckpt")),
    "data_efficiency": {"enabled": False, "seed": 0, "data_sampling": None, "data_routing": None},
    "timers": {"throughput": None},
    "torch_autocast": {"enabled": False, "dtype": "", "lower_precision_safe_modules": None},
    "data_types": {"grad_accum_dtype": "", "param_dtype": "", "buffer_dtype": "", "keep_in_fp32_modules": None},
    "activation_checkpointing": {
        **dict.fromkeys(("partition_activations", "contiguous_memory_optimization", "cpu_checkpointing"), False),
        **dict.fromkeys(("synchronize_checkpoint_boundary", "profile"), False),
        "number_checkpoints": 1,
    },
    "flops_profiler": {
        **{"enabled": False, "detailed": False, "output_file": ""},
        **{"recompute_fwd_factor": None, "profile_step": 1, "module_depth": None, "top_modules": 1},
    },
    "aio": {
        **dict.fromkeys(("block_size", "queue_depth", "intra_op_parallelism", "thread_count"), 1),
        **dict.fromkeys(("single_submit", "overlap_events", "use_gds"), False),
    },
    "checkpoint": {
        **{"tag_validation": "", "load_universal": False, "use_node_local_storage": False},
        **{"parallel_write": None, "type": "", "writer": None},
    },
}
# An unknown key in the other blocks is only a warning: DeepSpeed ignores it.
_STRICT = ("optimizer", "scheduler", "fp16", "bf16")
_BOOLEANS = (
    *("prescale_gradients", "wall_clock_breakdown", "memory_breakdown", "dump_state", "disable_allgather"),
    *("disable_python_gc", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "dataloader_drop_last"),
    *("managed_gradient_accumulation", "use_data_before_expert_parallelism"),
)
_COUNTS = ("steps_per_print", "vocabulary_size", "sequence_parallel_size", *BATCH_KEYS)
_NUMBERS = {"gradient_clipping": (0.0, ">= 0"), "gradient_predivide_factor": (5e-324, "> 0")}
_CHOICES = {
    "gradient_allreduce_op": ("mean", "sum"),
    "communication_data_type": ("fp32", "fp16", "bf16"),
    "seq_parallel_communication_data_type": ("fp32", "fp16", "bf16"),
    "log_level": ("debug", "info", "warning", "error", "critical"),
}
_OTHERS = ("bfloat16", "allgather_size")

REMOVED = {
    "amp": "use bf16 or fp16",
    "nebula": "leave it out: checkpoints are written in the background without it",
    "compression_training": "train first, and compress the exported model",
    "quantize_training": "train first, and quantize the exported model",
    "eigenvalue": "leave it out",
    "sparse_gradients": "leave it out: gradients of embeddings are dense",
    "sparse_attention": "leave it out: attention is PyTorch's, over all tokens",
    "elasticity": "give the batch sizes; a run also resumes with another number of ranks",
    "graph_harvesting": "use model.kernels",
    "curriculum_learning": "train short sequences first (data.seq_length), and go on with --initialize_from",
}
_REMOVED_FROM_ZERO = {
    "mics_shard_size": "use zero_hpz_partition_size",
    "mics_hierarchical_params_gather": "use zero_hpz_partition_size",
    "zeropp_loco_param": "leave it out",
}
_KNOWN = (*_BLOCKS, *_BOOLEANS, *_COUNTS, *_NUMBERS, *_CHOICES, *_OTHERS, *REMOVED)
_LARGEST, _LARGEST_INTEGER = 1e30, 2**53
"""Numbers beyond them have no place in a configuration, and DeepSpeed's arithmetic is not made for them."""


def check_deepspeed(given: Mapping[str, Any], where: str, own_model: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Return DeepSpeed's keys in their one form, and warnings about keys that have no effect.

    `own_model`: the run is not ours, so features that DeepSpeed has removed are left to the installed release.
    A ConfigError names a key with a value that DeepSpeed cannot read or would read differently.
    """
    values = {key: value for key, value in given.items() if value is not None}
    if values.get("steps_per_print") == math.inf:  # accelerate writes it for "never".
        values["steps_per_print"] = 10**9
    for path, number in _numbers(values):
        if not abs(number) <= _LARGEST:  # NaN compares false.
            raise ConfigError(f"{where}: {path}: {str(number)[:20]}; must be a number of at most {_LARGEST:g}")
    _take_out_removed(values, where, own_model)
    if "bfloat16" in values:
        old = values.pop("bfloat16")
        values.setdefault("bf16", old)
    _check_scalars(values, where)
    for key in [key for key in _BLOCKS if key in values]:
        if key == "zero_optimization" and isinstance(values[key], bool):
            values[key] = {"stage": int(values[key])}  # DeepSpeed's oldest form.
        if not isinstance(values[key], Mapping):
            raise ConfigError(f"{where}: {key}: must be an object, is {values[key]!r}")
        values[key] = _with_booleans(values[key], f"{where}: {key}")
        values[key] = _with_types(values[key], _BLOCKS[key] or {}, f"{where}: {key}")
    if "zero_optimization" in values:
        values["zero_optimization"] = _check_zero(values["zero_optimization"], where, own_model)
    for name in ("optimizer", "scheduler"):
        if name in values:
            values[name] = _check_typed(values[name], f"{where}: {name}")
    return values, list(_unknown(values, where))


def _take_out_removed(values: dict[str, Any], where: str, own_model: bool) -> None:
    """Take out removed features that are off; refuse those that are on."""
    for key in [key for key in REMOVED if key in values]:
        value = values[key]
        off = read_boolean(value.get("enabled")) if isinstance(value, Mapping) else read_boolean(value)
        if off is False or value == {}:
            values.pop(key)
        elif not own_model:
            raise ConfigError(f"{where}: {key}: DeepSpeed has removed it; {REMOVED[key]}")


def _check_scalars(values: dict[str, Any], where: str) -> None:
    for key, value in values.items():
        if value == AUTO:
            continue
        if key in _BOOLEANS:
            values[key] = read_boolean(value)
            if values[key] is None:
                raise ConfigError(f"{where}: {key}: {value!r}; must be true or false")
        elif key in _COUNTS:
            values[key] = whole(value)
            if values[key] is None or values[key] < 1:
                raise ConfigError(f"{where}: {key}: {value!r}; must be an integer >= 1")
        elif key in _NUMBERS:
            least, allowed = _NUMBERS[key]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least:
                raise ConfigError(f"{where}: {key}: {value!r}; must be a number {allowed}")
        elif key in _CHOICES and not (isinstance(value, str) and value.lower() in _CHOICES[key]):
            raise ConfigError(f"{where}: {key}: {value!r}; must be one of {', '.join(_CHOICES[key])}")


def _with_booleans(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a copy whose `enabled`, at any depth, is a boolean or `auto`; a null one is left out."""
    copied: dict[str, Any] = {}
    for key, value in block.items():
        if isinstance(value, Mapping) and key != "enabled":
            value = _with_booleans(value, f"{where}.{key}")
        elif key == "enabled" and value != AUTO:
            if value is None:
                continue
            read = read_boolean(value)
            if read is None:
                raise ConfigError(f"{where}.enabled: {value!r}; must be true or false")
            value = read
        copied[key] = value
    return copied


def _with_types(block: dict[str, Any], kinds: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a copy with booleans and integers for what is written otherwise; null means DeepSpeed's default."""
    copied = {}
    for key, value in block.items():
        kind = kinds.get(key)
        if kind is None or value == AUTO:
            copied[key] = value
            continue
        if value is None:
            continue
        read, allowed = _READERS[type(kind)]
        copied[key] = read(value)
        if copied[key] is None or (not isinstance(kind, str) and copied[key] < 0):
            raise ConfigError(f"{where}.{key}: {value!r}; must be {allowed}")
    return copied


def _check_zero(block: dict[str, Any], where: str, own_model: bool) -> dict[str, Any]:
    block = {key: value for key, value in block.items() if value is not None}
    for key, instead in _REMOVED_FROM_ZERO.items():
        if key in block and not own_model:
            raise ConfigError(f"{where}: zero_optimization.{key}: DeepSpeed has removed it; {instead}")
    if "aio" in block and not own_model:
        raise ConfigError(f"{where}: zero_optimization.aio: must stand beside zero_optimization, as the block 'aio'")
    stage = block.get("stage", 0)
    if whole(stage) not in (0, 1, 2, 3):
        raise ConfigError(f"{where}: zero_optimization.stage: {stage!r}; must be 0, 1, 2 or 3")
    if "stage" in block:
        block["stage"] = whole(stage)
    for old, new in (("cpu_offload", "offload_optimizer"), ("cpu_offload_param", "offload_param")):
        if old in block:
            value = block.pop(old)
            moves = read_boolean(value)
            if moves is None:
                raise ConfigError(f"{where}: zero_optimization.{old}: {value!r}; must be true or false")
            if moves and new in block:
                raise ConfigError(f"{where}: zero_optimization.{old}: given beside {new}, its present name; keep one")
            if moves:
                block[new] = {"device": "cpu"}
    for key in ("offload_optimizer", "offload_param"):
        offload = block.get(key, {})
        if not isinstance(offload, Mapping):
            raise ConfigError(f"{where}: zero_optimization.{key}: must be an object, is {offload!r}")
        device = offload.get("device", "none")
        if device not in ("none", "cpu", "nvme"):
            raise ConfigError(f"{where}: zero_optimization.{key}.device: {device!r}; must be one of none, cpu, nvme")
    return block


def _check_typed(block: dict[str, Any], where: str) -> dict[str, Any]:
    """Check a block of `type` and `params`; a null `params` is left out."""
    block = {key: value for key, value in block.items() if value is not None}
    if "type" not in block:
        example = "WarmupLR" if where.endswith("scheduler") else "AdamW"
        raise ConfigError(f"{where}.type: missing; give its name, such as {example}")
    if not isinstance(block.get("params", {}), Mapping):
        raise ConfigError(f"{where}.params: must be an object, is {block['params']!r}")
    return block


def _unknown(values: Mapping[str, Any], where: str) -> Iterator[str]:
    """Yield a warning for each key that DeepSpeed would ignore silently; refuse those that are surely mistakes."""
    for key, value in values.items():
        if key not in _KNOWN:
            yield f"{where}: {key}: unknown key, which DeepSpeed ignores{nearest(key, _KNOWN, 0.7)}"
        known = _BLOCKS.get(key)
        for name in value if known else ():
            if name not in known:  # type: ignore[operator]
                text = f"{where}: {key}.{name}: unknown key{nearest(name, known)}; valid: {', '.join(known)}"  # type: ignore
                if key in _STRICT:
                    raise ConfigError(text)
                yield text


def read_boolean(value: Any) -> bool | None:
    """Return a boolean as DeepSpeed's classes read it, from a word or 0 or 1 too; None if it is not one."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    words = {**dict.fromkeys(("true", "1", "on", "t", "yes", "y"), True)}
    words |= dict.fromkeys(("false", "0", "off", "f", "no", "n"), False)
    return words.get(value.lower()) if isinstance(value, str) else None


def whole(value: Any) -> int | None:
    """Return an integer that is written as one, or as a whole float such as 1e6; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST_INTEGER:
        return None
    return int(value) if int(value) == value else None


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) else None


_READERS: dict[type, tuple[Callable[[Any], Any], str]] = {
    bool: (read_boolean, "true or false"),
    int: (whole, "an integer >= 0"),
    float: (_number, "a number >= 0"),
    str: (_word, "a word"),
}


def _numbers(values: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers in a JSON value, at any depth, with their paths."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _numbers(value, f"{path}.{key}" if path else str(key))
    elif isinstance(values, (list, tuple)):
        for index, value in enumerate(values):
            yield from _numbers(value, f"{path}[{index}]")
    elif isinstance(values, (int, float)) and not isinstance(values, bool):
        yield path, values
