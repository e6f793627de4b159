"""The `model` block of a run that starts from another model's weights: what the JSON leaves out follows that model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bert_pld.config.architectures import preset_sizes
from bert_pld.config.errors import ConfigError
from bert_pld.config.model import KEYS_OF_NO_WEIGHT, ModelConfig

_FREE_KEYS = (*KEYS_OF_NO_WEIGHT, "hidden_dropout", "attention_dropout")
_MAY_DIFFER = (*_FREE_KEYS, "global_rope_theta", "local_rope_theta")
"""Besides them, the rotary positions' wavelengths, which longer sequences may change."""
_MAY_GROW = ("max_position_embeddings", "vocab_size")


@dataclasses.dataclass(frozen=True)
class FollowedModel:
    """The model whose weights a run starts from."""

    name: str
    """For messages: the path."""
    config: ModelConfig
    """A `vocab_size` of None leaves it to the data."""
    is_run: bool
    """Whether it is a run of ours. Then keys of the JSON stand as they are, free keys have their usual defaults, and
    loading the weights compares shapes."""


def follow(values: Mapping[str, Any], model: FollowedModel, where: str) -> dict[str, Any]:
    """Return a `model` block with another model's values where none are given.

    A ConfigError names a key that contradicts a Hugging Face model.
    """
    own = dataclasses.asdict(model.config)
    given = dict(values)
    preset = given.pop("preset", None)
    sizes = {} if preset is None else preset_sizes(model.config.architecture, preset, where)
    if model.is_run:
        return {
            **{key: value for key, value in own.items() if key not in _FREE_KEYS},
            "preset": preset,
            **sizes,
            **given,
        }
    for key in sizes.keys() - given.keys() - {*_FREE_KEYS}:
        if sizes[key] != own[key]:
            raise ConfigError(
                f"{where}: model.preset: {preset!r} has {key} {sizes[key]}; {model.name}, whose weights the run starts"
                f" from, has {own[key]}; give preset null"
            )
    for key, value in given.items():
        if key in own and not _agrees(key, value, own):
            raise ConfigError(
                f"{where}: model.{key}: {value!r}; {model.name}, whose weights the run starts from, has {own[key]!r};"
                " leave the key out"
            )
    return {**own, **given, "preset": None}


def _agrees(key: str, value: Any, own: Mapping[str, Any]) -> bool:
    if key == "next_sentence_prediction":
        return own[key] == "auto" or value is not True
    if key in _MAY_DIFFER or value == own[key] or (value is None and key.endswith("vocab_size")):
        return True
    if key in _MAY_GROW:
        least = own["exported_vocab_size"] if key == "vocab_size" else own[key]
        return least is None or (isinstance(value, (int, float)) and value >= least)
    return False
