"""A Hugging Face class's configuration and state dict as ours, every parameter accounted for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bert_pld.config import ModelConfig
from bert_pld.model.hugging_face import family_named
from bert_pld.model.hugging_face.conversion import import_state


def from_hugging_face(hf_config: Any, hf_state: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Rename and join the parameters of a Hugging Face class with an MLM head into ours.

    Args:
        hf_config: configuration of a family of `FAMILIES`.
        hf_state: state dict of its `…ForMaskedLM` class, or of its `…ForPreTraining` class (then our model has an NSP
            head), with or without the tied decoder.

    Returns:
        The configuration and the state dict of `bert_pld.model.BertForPreTraining`.

    Raises:
        ValueError: another model type, an option that our model does not support, an untied decoder, or a parameter
            that is missing, unknown or of the wrong shape.
    """
    family = family_named(getattr(hf_config, "model_type", None))
    config = family.read_config(hf_config)
    has_pairs = family.has_next_sentence_head and "cls.seq_relationship.weight" in hf_state
    config = dataclasses.replace(config, next_sentence_prediction=has_pairs)
    imported = import_state(hf_state, config, family)
    for name in imported.missing:
        raise ValueError(f"Hugging Face state dict: {dict(family.names(config))[name][0]} is missing")
    for name in imported.ignored:
        raise ValueError(f"Hugging Face state dict: unexpected {name} {list(hf_state[name].shape)}")
    return config, imported.state
