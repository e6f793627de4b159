"""Conversion between our model and Hugging Face's classes, in both directions.

Each family of classes has a file that defines its configuration and names: `family.py` says what such a file gives.
`conversion.py` renames, splits and joins tensors for all of them. The decoder is tied to the word embeddings
everywhere, so it has no entry of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bert_pld.config import ModelConfig
from bert_pld.model.hugging_face.bert import BERT, MEGATRON_BERT
from bert_pld.model.hugging_face.conversion import export_state
from bert_pld.model.hugging_face.distilbert import DISTILBERT
from bert_pld.model.hugging_face.electra import ELECTRA
from bert_pld.model.hugging_face.family import Family
from bert_pld.model.hugging_face.modernbert import MODERNBERT
from bert_pld.model.hugging_face.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA

_OF_BERT_BLOCKS: tuple[Family, ...] = (BERT, MEGATRON_BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, DISTILBERT, ELECTRA)
FAMILIES: dict[str, Family] = {family.model_type: family for family in (*_OF_BERT_BLOCKS, MODERNBERT)}
"""Model type → family."""


def family_of(config: ModelConfig) -> Family:
    """Return the family that a model is exported to."""
    of_bert = config.family or {"pre": "megatron-bert", "post": "bert"}[config.normalization]
    return FAMILIES[of_bert if config.architecture == "bert" else config.architecture]


def family_named(model_type: Any) -> Family:
    """Return the family of a model type; a ValueError lists ours."""
    if model_type not in FAMILIES:
        raise ValueError(f"Hugging Face model type {model_type!r}: must be one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def to_hugging_face(
    state: Mapping[str, Tensor], config: ModelConfig, *, pad_token_id: int = 0
) -> tuple[Any, dict[str, Tensor]]:
    """Rename and split our parameters into those of Hugging Face's class.

    Args:
        state: state dict of `bert_pld.model.BertForPreTraining`.
        config: its configuration, with `vocab_size` and `next_sentence_prediction` resolved.
        pad_token_id: id of `[PAD]`.

    Returns:
        A configuration such as `BertConfig` whose `architectures` names the class, and contiguous tensors under Hugging
        Face's names. As in a file written by `save_pretrained`, the tied decoder is left out.

    Raises:
        ValueError: a parameter of `state` is missing, unknown or of the wrong shape.
    """
    family = family_of(config)
    return family.write_config(config, pad_token_id), export_state(state, config, family, pad_token_id)
