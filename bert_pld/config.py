"""One JSON for a run: our blocks as validated dataclasses, DeepSpeed's keys passed through untouched.

`load_config` reads a DeepSpeed JSON, takes out what is ours (progressive_layer_drop, model, data, training, and the
optimizers, schedulers and monitors that we build), and leaves in `RunConfig.deepspeed` the dict DeepSpeed gets. Every
mistake is a ValueError of one line that names the file, the key, what was given and what is allowed.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from bert_pld.config_blocks import ConfigError, build_block
from bert_pld.config_secrets import without_secrets
from bert_pld.rng import MAX_SEED

# hidden_size, num_layers, num_attention_heads, intermediate_size, initializer_range. BERT's 0.02 suits a width of 768
# and more; narrower models leave the unigram plateau sooner with 1/sqrt(hidden_size).
_PRESETS: dict[str, tuple[int, int, int, int, float]] = {
    "tiny": (128, 2, 2, 512, 0.088),
    "mini": (256, 4, 4, 1024, 0.0625),
    "small": (512, 4, 8, 2048, 0.044),
    "medium": (512, 8, 8, 2048, 0.044),
    "base": (768, 12, 12, 3072, 0.02),
    "large": (1024, 24, 16, 4096, 0.02),
}
_PRESET_FIELDS = ("hidden_size", "num_layers", "num_attention_heads", "intermediate_size", "initializer_range")

MONITOR_BLOCKS = ("tensorboard", "wandb", "csv_monitor", "comet")
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@dataclasses.dataclass(frozen=True)
class ProgressiveLayerDropConfig:
    """The `progressive_layer_drop` block: Progressive Layer Dropping, arXiv:2010.13369."""

    enabled: bool = True
    theta: float = 0.5
    """Limit of θ(t), in (0, 1]: the keep probability that the last block tends to."""
    gamma: float | Literal["auto"] = "auto"
    """Rate of the decay of θ per optimizer step, >= 0; `auto` is the paper's rule, 100 / training.max_steps."""
    granularity: Literal["batch", "sample"] = "batch"
    """What a gate drops a block for: the whole micro-batch (the paper), or an exact share of its sequences."""
    temporal: Literal["exponential", "constant"] = "exponential"
    """θ(t) decays from 1, or is `theta` from the first step on."""
    depth: Literal["linear", "uniform"] = "linear"
    """Keep probability falls linearly with depth to θ, or is θ for every block."""
    keep_first_block: bool = False
    """Index the depth from 0, as the published code did: the first block is never dropped."""
    seed: int = 0

    def check(self) -> Iterable[str]:
        """Yield what is wrong, as 'key: given; allowed'."""
        if not 0.0 < self.theta <= 1.0:
            yield f"theta: {self.theta}; must be in (0, 1]"
        if self.gamma != "auto" and self.gamma < 0:
            yield f"gamma: {self.gamma}; must be >= 0, or 'auto'"
        yield from _check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The `model` block. `preset` fills the sizes that are not given."""

    preset: Literal["tiny", "mini", "small", "medium", "base", "large"] | None = "base"
    hidden_size: int = 768
    num_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    vocab_size: int | None = None
    """Rows of the embedding; by default the data's vocabulary, rounded up to a multiple of 8."""
    normalization: Literal["pre", "post"] = "pre"
    """`pre`: the paper's identity-mapping blocks (Hugging Face MegatronBert). `post`: the original BERT."""
    next_sentence_prediction: bool | Literal["auto"] = "auto"
    """Whether there is a pooler and an NSP head; `auto`: as the data has sentence pairs."""
    hidden_act: Literal["gelu", "gelu_tanh"] = "gelu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    position_initialization: Literal["normal", "sinusoidal"] = "normal"
    """What the learned position embeddings start from: noise, or sinusoids, whose neighbours differ by a rotation that
    attention can find sooner. Either way they are trained, and exported alike."""
    kernels: Literal["auto", "reference", "compiled", "triton"] = "auto"
    activation_checkpointing: bool = False

    def check(self) -> Iterable[str]:
        """Yield what is wrong, as 'key: given; allowed'."""
        for key in ("hidden_size", "num_layers", "num_attention_heads", "intermediate_size", "type_vocab_size"):
            if getattr(self, key) < 1:
                yield f"{key}: {getattr(self, key)}; must be >= 1"
        if self.max_position_embeddings < 8:
            yield f"max_position_embeddings: {self.max_position_embeddings}; must be >= 8"
        if self.vocab_size is not None and self.vocab_size < 6:
            yield f"vocab_size: {self.vocab_size}; must be >= 6"
        if self.num_attention_heads >= 1 and self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            yield f"hidden_size: {self.hidden_size}; must be a multiple of num_attention_heads ({heads})"
        for key in ("hidden_dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, key) < 1.0:
                yield f"{key}: {getattr(self, key)}; must be in [0, 1)"
        for key in ("layer_norm_eps", "initializer_range"):
            if getattr(self, key) <= 0.0:
                yield f"{key}: {getattr(self, key)}; must be > 0"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The `data` block."""

    seq_length: int = 128
    masking: Literal["dynamic", "static"] = "dynamic"
    """New masks each epoch, or the same ones: of shards with masks of their own, those."""
    mask_probability: float = 0.15
    whole_word: bool = False
    shuffle: Literal["global", "blocks"] = "global"
    """`global`: any row anywhere in its epoch. `blocks`: rows that lie together are used close together."""
    shuffle_block_rows: int = 4096
    """Of `blocks`: rows that lie together."""
    shuffle_window_blocks: int = 64
    """Of `blocks`: blocks whose rows are mixed; two such windows should fit into a node's file cache."""
    workers: int = 1
    """Loader processes a rank; 0 loads in the training process."""
    vocab_file: str | None = None
    """The vocabulary of shards in NVIDIA's format that have no `vocab.txt` beside them."""

    def check(self) -> Iterable[str]:
        """Yield what is wrong, as 'key: given; allowed'."""
        if self.seq_length < 8:
            yield f"seq_length: {self.seq_length}; must be >= 8"
        if not 0.0 < self.mask_probability < 1.0:
            yield f"mask_probability: {self.mask_probability}; must be in (0, 1)"
        for key in ("shuffle_block_rows", "shuffle_window_blocks"):
            if getattr(self, key) < 1:
                yield f"{key}: {getattr(self, key)}; must be >= 1"
        if self.workers < 0:
            yield f"workers: {self.workers}; must be >= 0"

    @property
    def loader_masking(self) -> dict[str, Any]:
        """Arguments about masks that `data.loader` takes for training and for evaluation."""
        keys = ("mask_probability", "whole_word", "masking")
        return {key: getattr(self, key) for key in keys}

    @property
    def loader_order(self) -> dict[str, Any]:
        """Arguments about order and reading ahead that `data.loader` takes for training."""
        keys = ("shuffle", "shuffle_block_rows", "shuffle_window_blocks", "workers")
        return {key: getattr(self, key) for key in keys}


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The `training` block. Intervals are in optimizer steps; 0 switches one off."""

    max_steps: int = 200_000
    log_interval: int = 10
    eval_interval: int = 1000
    eval_rows: int | None = None
    """Rows of the validation split that an evaluation during training reads; by default all."""
    checkpoint_interval: int = 1000
    keep_checkpoints: int = 3
    seed: int = 42
    """Of initialisation, data order, masks and dropout. Gates have their own."""
    peak_tflops: float | None = None
    """What a device can do at most, for `mfu`; by default known for the GPUs in bert_pld/training/metrics.py."""
    heartbeat_timeout: float = 30.0
    """Seconds without a sign of life after which a rank is taken for lost and the run ended, on every host."""
    stall_timeout: float = 1800.0
    """Seconds without progress of any rank after which a run is taken for hanging and ended; 0: never."""

    def check(self) -> Iterable[str]:
        """Yield what is wrong, as 'key: given; allowed'."""
        for key in ("max_steps", "log_interval", "keep_checkpoints"):
            if getattr(self, key) < 1:
                yield f"{key}: {getattr(self, key)}; must be >= 1"
        for key in ("eval_interval", "checkpoint_interval"):
            if getattr(self, key) < 0:
                yield f"{key}: {getattr(self, key)}; must be >= 0 (0: never)"
        if self.eval_rows is not None and self.eval_rows < 1:
            yield f"eval_rows: {self.eval_rows}; must be >= 1"
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            yield f"peak_tflops: {self.peak_tflops}; must be > 0"
        if self.heartbeat_timeout < 2:
            yield f"heartbeat_timeout: {self.heartbeat_timeout}; must be >= 2 seconds"
        if self.stall_timeout and self.stall_timeout < self.heartbeat_timeout:
            yield f"stall_timeout: {self.stall_timeout}; must be >= heartbeat_timeout, or 0 (never)"
        yield from _check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run's whole configuration: our blocks, and what DeepSpeed is given."""

    progressive_layer_drop: ProgressiveLayerDropConfig
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    deepspeed: dict[str, Any]
    """Every key that is not a block of ours, `optimizer`, `scheduler` and monitors included, as given."""

    def as_json(self) -> dict[str, Any]:
        """The resolved configuration in the form `load_config` reads, without secrets: what is saved and shown."""
        ours = {name: dataclasses.asdict(getattr(self, name)) for name in OUR_BLOCKS}
        return {**ours, **without_secrets(self.deepspeed)}

    def with_model(self, **changes: Any) -> RunConfig:
        """This configuration with some keys of `model` replaced."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, **changes))

    @property
    def precision(self) -> Literal["fp16", "bf16", "fp32"]:
        """What DeepSpeed's blocks ask for."""
        if self.deepspeed.get("fp16", {}).get("enabled"):
            return "fp16"
        if self.deepspeed.get("bf16", self.deepspeed.get("bfloat16", {})).get("enabled"):
            return "bf16"
        return "fp32"

    @property
    def zero_stage(self) -> int:
        """ZeRO stage, 0 to 3."""
        return int(self.deepspeed.get("zero_optimization", {}).get("stage", 0))


OUR_BLOCKS: dict[str, type[Any]] = {
    "progressive_layer_drop": ProgressiveLayerDropConfig,
    "model": ModelConfig,
    "data": DataConfig,
    "training": TrainingConfig,
}


def load_config(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> RunConfig:
    """Read and validate a run's JSON.

    Args:
        source: a file, or its content as a mapping.
        overrides: `section.key=value` strings; the value is JSON, or a bare string.

    Raises:
        ConfigError: the file is missing or no JSON object; an unknown key in a block of ours (with the nearest valid
            one); a value of the wrong type or out of range; sizes that contradict each other.
    """
    where = "configuration" if isinstance(source, Mapping) else str(source)
    values = copy.deepcopy(dict(source)) if isinstance(source, Mapping) else read_json(Path(source))
    for override in overrides:
        apply_override(values, override)
    blocks = {name: values.pop(name, None) for name in OUR_BLOCKS}
    _refuse_misspelt_blocks(values, where)
    if blocks["progressive_layer_drop"] is None:
        blocks["progressive_layer_drop"] = {"enabled": False}
    blocks = {name: {} if block is None else block for name, block in blocks.items()}
    blocks["model"] = _fill_preset(blocks["model"], where)
    run = RunConfig(deepspeed=values, **{n: build_block(c, blocks[n], f"{where}: {n}") for n, c in OUR_BLOCKS.items()})
    if run.data.seq_length > run.model.max_position_embeddings:
        raise ConfigError(
            f"{where}: data.seq_length: {run.data.seq_length}; must be at most"
            f" model.max_position_embeddings ({run.model.max_position_embeddings})"
        )
    pld = run.progressive_layer_drop
    if pld.gamma == "auto":
        pld = dataclasses.replace(pld, gamma=100.0 / run.training.max_steps)
    return dataclasses.replace(run, progressive_layer_drop=pld)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, refusing duplicate keys (of which JSON would silently keep the last)."""

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
    """Set one `section.key=value` in place, making sections as needed."""
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

    Returns:
        (train_batch_size, micro-batch a rank, accumulation steps), sequences.

    Raises:
        ConfigError: too few of the three are given, or they do not divide.
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
    """Write a preset's sizes under those that are given; sizes given without a preset stand alone."""
    if not isinstance(values, Mapping):
        return values
    preset = values.get("preset", "base")
    if preset is None:
        return values
    if preset not in _PRESETS:
        raise ConfigError(f"{where}: model.preset: {preset!r}; must be one of {', '.join(_PRESETS)}, or null")
    return {**dict(zip(_PRESET_FIELDS, _PRESETS[preset], strict=True)), **values}


def _refuse_misspelt_blocks(values: Mapping[str, Any], where: str) -> None:
    """DeepSpeed ignores top-level keys it does not know, so a misspelt block of ours would vanish: refuse it."""
    for key in values:
        near = difflib.get_close_matches(key.lower(), OUR_BLOCKS, n=1, cutoff=0.8)
        if near:
            raise ConfigError(f"{where}: {key}: unknown block, did you mean '{near[0]}'?")


def _check_seed(seed: int) -> Iterable[str]:
    if not 0 <= seed <= MAX_SEED:
        yield f"seed: {seed}; must be in [0, {MAX_SEED}]"
