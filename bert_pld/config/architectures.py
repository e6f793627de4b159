"""What `model.architecture` and `model.preset` stand for: the sizes and defaults that a `model` block leaves out.

`modernbert` is the encoder of Warner et al. (arXiv:2412.13663): rotary positions, gated feed-forwards, no biases, and
attention that is local in two of three blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bert_pld.config.errors import ConfigError

_SIZES = ("hidden_size", "num_layers", "num_attention_heads", "intermediate_size", "initializer_range")
# An initializer_range of 0.02 suits widths from 768; narrower models leave the unigram plateau sooner with
# 1/sqrt(hidden_size). The first and the last block of every `modernbert` preset attend globally.
_PRESETS: dict[str, dict[str, tuple[int, int, int, int, float]]] = {
    "bert": {
        "tiny": (128, 2, 2, 512, 0.088),
        "mini": (256, 4, 4, 1024, 0.0625),
        "small": (512, 4, 8, 2048, 0.044),
        "medium": (512, 8, 8, 2048, 0.044),
        "base": (768, 12, 12, 3072, 0.02),
        "large": (1024, 24, 16, 4096, 0.02),
    },
    "modernbert": {
        "tiny": (128, 4, 2, 192, 0.088),
        "mini": (256, 7, 4, 384, 0.0625),
        "small": (512, 7, 8, 768, 0.044),
        "medium": (512, 13, 8, 768, 0.044),
        "base": (768, 22, 12, 1152, 0.02),
        "large": (1024, 28, 16, 2624, 0.02),
    },
}
_MODERNBERT_ONLY: dict[str, Any] = {
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {},
    "modernbert": {
        "max_position_embeddings": 8192,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "layer_norm_eps": 1e-5,
        **_MODERNBERT_ONLY,
    },
}
_BERT_ONLY = {"type_vocab_size": 2, "position_initialization": "normal"}
"""Keys that `modernbert` has no use for, with the value that stands in its resolved configuration."""


def complete_model_block(values: Any, where: str) -> tuple[Any, list[str]]:
    """Return a `model` block with the values of its architecture and preset where none are given, and notices.

    With `preset: null` no sizes are added. A ConfigError names an unknown architecture or preset, or a key that
    contradicts the architecture; a notice names one that has no effect.
    """
    if not isinstance(values, Mapping):
        return values, []
    architecture = values.get("architecture", "bert")
    if not isinstance(architecture, str) or architecture not in _PRESETS:
        raise ConfigError(f"{where}: model.architecture: {architecture!r}; must be one of {', '.join(_PRESETS)}")
    values, notices = _fit(values, architecture, where)
    preset = values.get("preset", "base")
    sizes = {} if preset is None else preset_sizes(architecture, preset, where)
    return {**_DEFAULTS[architecture], **sizes, **values}, notices


def preset_sizes(architecture: str, preset: Any, where: str) -> dict[str, Any]:
    """Return a preset's keys and values; a ConfigError lists the presets."""
    presets = _PRESETS[architecture]
    if not isinstance(preset, str) or preset not in presets:
        raise ConfigError(f"{where}: model.preset: {preset!r}; must be one of {', '.join(presets)}, or null")
    return dict(zip(_SIZES, presets[preset], strict=True))


def _fit(values: Mapping[str, Any], architecture: str, where: str) -> tuple[dict[str, Any], list[str]]:
    """Return the block without keys that its architecture does not use, and a notice for each that was given."""
    if architecture == "bert":
        for key in _MODERNBERT_ONLY:
            if values.get(key) is not None:
                raise ConfigError(f"{where}: model.{key}: {values[key]!r}; only for model.architecture 'modernbert'")
        return dict(values), []
    kept = {key: value for key, value in values.items() if value is not None or key not in _MODERNBERT_ONLY}
    notices = []
    if kept.get("normalization", "pre") != "pre":
        raise ConfigError(
            f"{where}: model.normalization: {kept['normalization']!r}; must be 'pre' with architecture 'modernbert'"
        )
    if kept.get("next_sentence_prediction", "auto") not in (False, "auto"):
        raise ConfigError(
            f"{where}: model.next_sentence_prediction: {kept['next_sentence_prediction']!r}; must be false or 'auto'"
            " with architecture 'modernbert', which has no segments; sentence pairs are read as one text"
        )
    kept["next_sentence_prediction"] = False
    for key, value in _BERT_ONLY.items():
        if kept.pop(key, value) != value:
            notices.append(f"model.{key}: no effect with architecture 'modernbert'")
    return kept, notices
