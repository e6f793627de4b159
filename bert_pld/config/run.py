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
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from bert_pld.config.architectures import complete_model_block
from bert_pld.config.auto import resolve_auto
from bert_pld.config.batch_sizes import resolve_batch_sizes
from bert_pld.config.blocks import DataConfig, ProgressiveLayerDropConfig, TrainingConfig
from bert_pld.config.deepspeed import check_deepspeed, read_boolean, whole
from bert_pld.config.errors import ConfigError, nearest
from bert_pld.config.file import find_config, read_json
from bert_pld.config.following import FollowedModel, follow
from bert_pld.config.model import ModelConfig
from bert_pld.config.phases import choose_phase
from bert_pld.files import without_secrets

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run's whole configuration: our blocks, and DeepSpeed's keys."""

    progressive_layer_drop: ProgressiveLayerDropConfig
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    deepspeed: dict[str, Any]
    """Every key outside our blocks, with `optimizer`, `scheduler` and the monitor blocks, in one form and without
    "auto" except for batch sizes (see `deepspeed.py` and `auto.py`)."""
    source: str = dataclasses.field(default="configuration", compare=False)
    """The file, for errors."""
    warnings: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """Keys that have no effect."""
    notices: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """What each "auto" stands for, and keys of ours that the architecture does not use."""

    def as_json(self) -> dict[str, Any]:
        """Return the resolved configuration in the form that `load_config` reads, without secrets."""
        ours = {name: dataclasses.asdict(getattr(self, name)) for name in OUR_BLOCKS}
        return {**ours, **without_secrets(self.deepspeed)}

    def with_model(self, **changes: Any) -> RunConfig:
        """Return a copy with some keys of `model` replaced."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, **changes))

    def batch_sizes(self, world_size: int) -> tuple[int, int, int]:
        """Return train_batch_size, the micro-batch size and the accumulation steps on `world_size` ranks."""
        return resolve_batch_sizes(self.deepspeed, world_size, self.training.max_micro_batch_size)

    @property
    def precision(self) -> Literal["fp16", "bf16", "fp32"]:
        """The precision that DeepSpeed's `fp16` and `bf16` blocks set."""
        name: Literal["fp16", "bf16"]
        for name in ("fp16", "bf16"):
            if read_boolean(self.deepspeed.get(name, {}).get("enabled")):
                return name
        return "fp32"

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage, 0 to 3."""
        return int(self.deepspeed.get("zero_optimization", {}).get("stage", 0))

    def offload_device(self, kind: Literal["optimizer", "param"] = "optimizer") -> Literal["none", "cpu", "nvme"]:
        """Where ZeRO keeps the optimizer's states, or the parameters: `none` is the device that trains."""
        return self.deepspeed.get("zero_optimization", {}).get(f"offload_{kind}", {}).get("device", "none")


_LARGEST = 1e15
"""Numbers beyond it are typing errors; NaN fails the comparison too."""

OUR_BLOCKS: dict[str, type[Any]] = {
    "progressive_layer_drop": ProgressiveLayerDropConfig,
    "model": ModelConfig,
    "data": DataConfig,
    "training": TrainingConfig,
}


def load_config(
    source: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    use: Literal["run", "own_model", "checkpoint"] = "run",
    follows: FollowedModel | None = None,
    phase: str | None = None,
) -> RunConfig:
    """Read and validate a run's JSON; a ConfigError names the mistake.

    `source` is the path of a file, the name of a shipped one (see `find_config`), or the content as a mapping. `phase`
    is a name in its `phases`. `overrides` are `section.key=value` strings, in which a value that is not JSON is a
    string. `follows` is the model whose weights the run starts from: its values stand where the JSON gives none, and
    its positions grow for `seq_length`.

    `use` says what the JSON is for:

    - `run`: a run of this package.
    - `own_model`: a run whose model is not ours. Its sizes and its number of steps are known only if the blocks give
      them; without a number of steps, what depends on it is refused.
    - `checkpoint`: a run that has saved a checkpoint. Its JSON was checked when it began, by the rules of that time.
    """
    where = "configuration" if isinstance(source, Mapping) else str(source)
    values = copy.deepcopy(dict(source)) if isinstance(source, Mapping) else read_json(find_config(source))
    values = choose_phase(values, phase, where)
    is_dense = values.get("progressive_layer_drop") is None
    for override in overrides:
        if override.partition("=")[0].partition(".")[0] == "phases":
            raise ConfigError(f"--set {override}: phases cannot be set; set a key of the chosen phase by its own path")
        apply_override(values, override)
    blocks = {name: values.pop(name, None) for name in OUR_BLOCKS}
    _refuse_misspelt_blocks(values, where)
    dropping = blocks["progressive_layer_drop"]
    # A job array sets the seed of every JSON: a seed alone does not turn dropping on.
    if dropping is None or (is_dense and isinstance(dropping, Mapping) and dropping.keys() == {"seed"}):
        blocks["progressive_layer_drop"] = {**(dropping or {}), "enabled": False}
    blocks = {name: {} if block is None else block for name, block in blocks.items()}
    known = {name: use == "run" or bool(blocks[name]) for name in ("model", "training")}
    grows = False
    if follows is not None and isinstance(blocks["model"], Mapping):
        grows = "max_position_embeddings" not in blocks["model"]
        blocks["model"] = follow(blocks["model"], follows, where)
    blocks["model"], notices = complete_model_block(blocks["model"], where)
    values = {key: value for key, value in values.items() if value is not None}
    warnings: list[str] = []
    if use != "checkpoint":
        values, warnings = check_deepspeed(values, where, own_model=use == "own_model")
    ours = {name: _build_block(cls, blocks[name], f"{where}: {name}") for name, cls in OUR_BLOCKS.items()}
    if use != "checkpoint":
        max_steps = ours["training"].max_steps if known["training"] else None
        hidden_size = ours["model"].hidden_size if known["model"] else None
        values, automatic = resolve_auto(values, where, max_steps, hidden_size)
        notices += automatic
    positions, needed = ours["model"].max_position_embeddings, ours["data"].seq_length
    if grows and needed > positions:
        ours["model"] = dataclasses.replace(ours["model"], max_position_embeddings=needed)
        notices.append(f"model.max_position_embeddings: {needed}, for data.seq_length; the weights are for {positions}")
    run = RunConfig(deepspeed=values, source=where, warnings=tuple(warnings), notices=tuple(notices), **ours)
    _check_model(run, where, use)
    knows_max_steps = use != "own_model" or "max_steps" in blocks["training"]
    if not knows_max_steps:
        for problem in run.progressive_layer_drop.needs_max_steps():
            raise ConfigError(f"{where}: progressive_layer_drop.{problem}")
    pld = run.progressive_layer_drop.resolved(run.training.max_steps)
    _check_dropping(pld, run, where, run.training.max_steps if knows_max_steps else math.inf)
    return dataclasses.replace(run, progressive_layer_drop=pld, data=run.data.resolved(run.training.max_steps))


def _check_model(run: RunConfig, where: str, use: str) -> None:
    """Reject a sequence length without positions, and what the model cannot do in this precision or ZeRO stage."""
    if run.data.seq_length > run.model.max_position_embeddings:
        raise ConfigError(
            f"{where}: data.seq_length: {run.data.seq_length}; must be at most"
            f" model.max_position_embeddings ({run.model.max_position_embeddings})"
        )
    if run.model.fp8 and run.precision == "fp32" and use == "run":
        raise ConfigError(f"{where}: model.fp8: true in fp32; enable bf16 or fp16, or set model.fp8 to false")
    if run.model.cuda_graphs and run.zero_stage == 3 and use == "run":
        raise ConfigError(
            f"{where}: model.cuda_graphs: true at zero_optimization.stage 3; use stage 0, 1 or 2, or false"
        )


def _check_dropping(pld: ProgressiveLayerDropConfig, run: RunConfig, where: str, max_steps: float) -> None:
    """Reject dense phases longer than the run, and DeepSpeed's own methods that drop or cut tokens beside ours."""
    if not pld.enabled:
        return
    dense = pld.dense_warmup + pld.dense_finish
    if dense > max_steps:
        raise ConfigError(
            f"{where}: progressive_layer_drop.dense_warmup + dense_finish: {dense:g} steps;"
            f" must be at most training.max_steps ({max_steps})"
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
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise ConfigError(f"{option} {override}: '{key}' is not a section")
    values[keys[-1]] = value


def _refuse_misspelt_blocks(values: Mapping[str, Any], where: str) -> None:
    """Reject top-level keys that look like one of our blocks: DeepSpeed would silently ignore a misspelt one."""
    for key in values:
        near = difflib.get_close_matches(key.lower(), [*OUR_BLOCKS, "phases"], n=1, cutoff=0.8)
        if near:
            raise ConfigError(f"{where}: {key}: unknown block, did you mean '{near[0]}'?")


def _build_block(cls: type[T], values: Any, where: str) -> T:
    """Make a block's dataclass from its JSON object; check names, types (by the annotations) and ranges."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: must be an object, is {values!r}")
    hints = get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{where}.{key}: unknown key{nearest(key, hints)}; valid: {', '.join(hints)}")
        if not _matches(value, hints[key]):
            raise ConfigError(f"{where}.{key}: {value!r}; must be {_describe(hints[key])}")
    block = cls(**{key: _converted(value, hints[key], f"{where}.{key}") for key, value in values.items()})
    for problem in block.check():  # type: ignore[attr-defined]
        raise ConfigError(f"{where}.{problem}")
    return block


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    arguments = get_args(hint)
    return (hint,) if get_origin(hint) is Literal or not arguments else arguments


def _matches(value: Any, hint: Any) -> bool:
    """Whether a value has a type of the annotation; whole floats such as 1e5 count as integers, as in DeepSpeed."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
    for kind in _alternatives(hint):
        if get_origin(kind) is Literal:
            if value in get_args(kind) and isinstance(value, str):
                return True
        elif kind in (int, float):
            if is_number and (kind is float or whole(value) is not None):
                return True
        elif isinstance(value, Mapping if dataclasses.is_dataclass(kind) else kind):
            return True
    return False


def _converted(value: Any, hint: Any, where: str) -> Any:
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, Mapping):
        (cls,) = (kind for kind in _alternatives(hint) if dataclasses.is_dataclass(kind))
        return _build_block(cls, value, where)  # type: ignore[arg-type]
    return float(value) if float in _alternatives(hint) else whole(value)


def _describe(hint: Any) -> str:
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
    return " or ".join(
        f"one of {', '.join(map(repr, get_args(kind)))}"
        if get_origin(kind) is Literal
        else words.get(kind) or f"an object with {', '.join(get_type_hints(kind))}"
        for kind in _alternatives(hint)
    )
