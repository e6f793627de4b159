"""One JSON for a run: our blocks become validated dataclasses, DeepSpeed's keys are passed through unchanged.

`load_config` reads a DeepSpeed JSON, takes out our blocks (progressive_layer_drop, model, data, training), and leaves
everything else in `RunConfig.deepspeed`. Every mistake is a `ConfigError` of one line that names the file, the key, the
given value and the allowed values.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from bert_pld.config_blocks import DataConfig, ModelConfig, ProgressiveLayerDropConfig, TrainingConfig
from bert_pld.files import without_secrets

T = TypeVar("T")

# BERT's initializer_range of 0.02 suits widths from 768; narrower models leave the unigram plateau sooner with
# 1/sqrt(hidden_size).
_PRESET_FIELDS = ("hidden_size", "num_layers", "num_attention_heads", "intermediate_size", "initializer_range")
_PRESETS: dict[str, tuple[int, int, int, int, float]] = {
    "tiny": (128, 2, 2, 512, 0.088),
    "mini": (256, 4, 4, 1024, 0.0625),
    "small": (512, 4, 8, 2048, 0.044),
    "medium": (512, 8, 8, 2048, 0.044),
    "base": (768, 12, 12, 3072, 0.02),
    "large": (1024, 24, 16, 4096, 0.02),
}

MONITOR_BLOCKS = ("tensorboard", "wandb", "csv_monitor", "comet")
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


class ConfigError(ValueError):
    """A mistake in a run's JSON; the message is one line."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run's whole configuration: our blocks, and DeepSpeed's keys."""

    progressive_layer_drop: ProgressiveLayerDropConfig
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    deepspeed: dict[str, Any]
    """Every key outside our blocks, as given, with `optimizer`, `scheduler` and the monitor blocks."""

    def as_json(self) -> dict[str, Any]:
        """Return the resolved configuration in the form that `load_config` reads, without secrets."""
        ours = {name: dataclasses.asdict(getattr(self, name)) for name in OUR_BLOCKS}
        return {**ours, **without_secrets(self.deepspeed)}

    def with_model(self, **changes: Any) -> RunConfig:
        """Return a copy with some keys of `model` replaced."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, **changes))

    @property
    def precision(self) -> Literal["fp16", "bf16", "fp32"]:
        """The precision that DeepSpeed's `fp16` and `bf16` blocks set."""
        if self.deepspeed.get("fp16", {}).get("enabled"):
            return "fp16"
        if self.deepspeed.get("bf16", self.deepspeed.get("bfloat16", {})).get("enabled"):
            return "bf16"
        return "fp32"

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage, 0 to 3."""
        return int(self.deepspeed.get("zero_optimization", {}).get("stage", 0))


OUR_BLOCKS: dict[str, type[Any]] = {
    "progressive_layer_drop": ProgressiveLayerDropConfig,
    "model": ModelConfig,
    "data": DataConfig,
    "training": TrainingConfig,
}


def load_config(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> RunConfig:
    """Read and validate a run's JSON; a ConfigError names the mistake.

    `source` is the path of a file, the name of a shipped one (see `find_config`), or the content as a mapping.
    `overrides` are `section.key=value` strings, in which a value that is not JSON is a string.
    """
    where = "configuration" if isinstance(source, Mapping) else str(source)
    values = copy.deepcopy(dict(source)) if isinstance(source, Mapping) else read_json(find_config(source))
    for override in overrides:
        apply_override(values, override)
    blocks = {name: values.pop(name, None) for name in OUR_BLOCKS}
    _refuse_misspelt_blocks(values, where)
    if blocks["progressive_layer_drop"] is None:
        blocks["progressive_layer_drop"] = {"enabled": False}
    blocks = {name: {} if block is None else block for name, block in blocks.items()}
    blocks["model"] = _fill_preset(blocks["model"], where)
    run = RunConfig(deepspeed=values, **{n: _build_block(c, blocks[n], f"{where}: {n}") for n, c in OUR_BLOCKS.items()})
    if run.data.seq_length > run.model.max_position_embeddings:
        raise ConfigError(
            f"{where}: data.seq_length: {run.data.seq_length}; must be at most"
            f" model.max_position_embeddings ({run.model.max_position_embeddings})"
        )
    pld = run.progressive_layer_drop.resolved(run.training.max_steps)
    _check_dropping(pld, run, where)
    return dataclasses.replace(run, progressive_layer_drop=pld)


def _check_dropping(pld: ProgressiveLayerDropConfig, run: RunConfig, where: str) -> None:
    """Reject dense phases longer than the run, and DeepSpeed's own methods that drop or cut tokens beside ours."""
    if not pld.enabled:
        return
    dense = pld.dense_warmup + pld.dense_finish
    if dense > run.training.max_steps:
        raise ConfigError(
            f"{where}: progressive_layer_drop.dense_warmup + dense_finish: {dense:g} steps;"
            f" must be at most training.max_steps ({run.training.max_steps})"
        )
    for key in (
        "data_efficiency.data_routing.random_ltd",
        "data_efficiency.data_sampling.curriculum_learning",
        "curriculum_learning",
    ):
        if _is_enabled(run.deepspeed, key):
            raise ConfigError(
                f"{where}: {key}: enabled beside progressive_layer_drop; enable one of the two"
                " (granularity 'token' is random layerwise token dropping)"
            )


def _is_enabled(values: Any, path: str) -> bool:
    """Whether the block at a path of keys, joined by dots, has `enabled: true`."""
    for key in (*path.split("."), "enabled"):
        values = values.get(key) if isinstance(values, Mapping) else None
    return bool(values)


def find_config(source: str | Path) -> Path:
    """Return the path as given if it exists, or else the shipped configuration of that name, if there is one.

    An installed package carries `configs/`, so `bert_base_pld_128.json` and `configs/bert_base_pld_128.json` name the
    same file in any working directory.
    """
    path = Path(source)
    package = Path(__file__).parent
    if path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    name = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    shipped = (folder / name for folder in (package / "configs", package.parent / "configs"))
    return next((file for file in shipped if file.is_file()), path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object and reject duplicate keys, of which Python's parser would silently keep the last."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        duplicates = sorted({key for key in keys if keys.count(key) > 1})
        if duplicates:
            raise ConfigError(f"{path}: duplicate key '{duplicates[0]}'")
        return dict(pairs)

    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a JSON object, is a {type(values).__name__}")
    return values


def apply_override(values: dict[str, Any], override: str, option: str = "--set") -> None:
    """Apply one `section.key=value` in place; missing sections are created."""
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"{option} {override}: must be {'section.key' if option == '--set' else 'key'}=value")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{option} {override}: '{key}' is not a section")
    values[keys[-1]] = value


def resolve_batch_sizes(deepspeed: Mapping[str, Any], world_size: int) -> tuple[int, int, int]:
    """Solve train_batch_size = train_micro_batch_size_per_gpu × gradient_accumulation_steps × ranks.

    Returns train_batch_size and the micro-batch size of a rank, in sequences, and the accumulation steps. A ConfigError
    is raised if too few of the three keys are given, or if their product is not train_batch_size.
    """
    given = {key: deepspeed.get(key) for key in BATCH_KEYS}
    given = {key: None if value == "auto" else value for key, value in given.items()}
    for key, value in given.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"{key}: {value!r}; must be an integer >= 1")
    total, micro, accumulation = (given[key] for key in BATCH_KEYS)
    if total is None and micro is None:
        raise ConfigError("train_batch_size or train_micro_batch_size_per_gpu: missing; give at least one")
    if micro is None:
        assert total is not None
        micro, rest = divmod(total, (accumulation or 1) * world_size)
        accumulation = accumulation or 1
    elif accumulation is None:
        accumulation, rest = divmod(total, micro * world_size) if total is not None else (1, 0)
    else:
        rest = 0
    product = micro * accumulation * world_size
    total = product if total is None else total
    if rest or product != total or not product:
        raise ConfigError(
            f"train_batch_size: {total}; must be train_micro_batch_size_per_gpu ({given[BATCH_KEYS[1]] or 'free'})"
            f" × gradient_accumulation_steps ({given[BATCH_KEYS[2]] or 'free'}) × {world_size} rank(s)"
        )
    return total, micro, accumulation


def _fill_preset(values: Any, where: str) -> Any:
    """Add the preset's sizes where none are given; with `preset: null` nothing is added."""
    if not isinstance(values, Mapping):
        return values
    preset = values.get("preset", "base")
    if preset is None:
        return values
    if preset not in _PRESETS:
        raise ConfigError(f"{where}: model.preset: {preset!r}; must be one of {', '.join(_PRESETS)}, or null")
    return {**dict(zip(_PRESET_FIELDS, _PRESETS[preset], strict=True)), **values}


def _refuse_misspelt_blocks(values: Mapping[str, Any], where: str) -> None:
    """Reject top-level keys that look like one of our blocks: DeepSpeed would silently ignore a misspelt one."""
    for key in values:
        near = difflib.get_close_matches(key.lower(), OUR_BLOCKS, n=1, cutoff=0.8)
        if near:
            raise ConfigError(f"{where}: {key}: unknown block, did you mean '{near[0]}'?")


def _build_block(cls: type[T], values: Any, where: str) -> T:
    """Make a block's dataclass from its JSON object; check names, types (by the annotations) and ranges."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: must be an object, is {values!r}")
    hints = get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{where}.{key}: unknown key{_nearest(key, hints)}; valid: {', '.join(hints)}")
        if not _matches(value, hints[key]):
            raise ConfigError(f"{where}.{key}: {value!r}; must be {_describe(hints[key])}")
    block = cls(**{key: float(value) if _is_float(hints[key], value) else value for key, value in values.items()})
    for problem in block.check():  # type: ignore[attr-defined]
        raise ConfigError(f"{where}.{problem}")
    return block


def _nearest(key: str, valid: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(valid), n=1, cutoff=0.5)
    return f", did you mean '{near[0]}'?" if near else ""


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    arguments = get_args(hint)
    return (hint,) if get_origin(hint) is Literal or not arguments else arguments


def _matches(value: Any, hint: Any) -> bool:
    for kind in _alternatives(hint):
        if get_origin(kind) is Literal:
            if value in get_args(kind) and isinstance(value, str):
                return True
        elif kind is float:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return True
        elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return True
    return False


def _is_float(hint: Any, value: Any) -> bool:
    return float in _alternatives(hint) and isinstance(value, int)


def _describe(hint: Any) -> str:
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
    return " or ".join(
        f"one of {', '.join(map(repr, get_args(kind)))}" if get_origin(kind) is Literal else words[kind]
        for kind in _alternatives(hint)
    )
