"""Hugging Face's BERT and ModernBERT classes with the weights of our model."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import nn

from bert_pld.config import ModelConfig
from bert_pld.kernels import select_backend
from bert_pld.model import BertForPreTraining, make_model
from bert_pld.model.hugging_face import to_hugging_face

HUGGING_FACE: dict[str, Literal["pre", "post"]] = {"hf_bert": "post", "hf_megatron": "pre"}
"""Name of each eager contender → the normalization of its class."""
HUGGING_FACE_CONTENDERS = tuple(f"{name}{suffix}" for name in HUGGING_FACE for suffix in ("", "_compiled"))
MODERNBERT = "hf_modernbert"
"""The eager contender whose class has ModernBERT's blocks."""
MODERNBERT_CONTENDERS = (MODERNBERT, f"{MODERNBERT}_compiled")


def import_hugging_face() -> None:
    """Load the classes now: transformers imports lazily, and that memory belongs to no contender."""
    import transformers

    assert transformers.BertForPreTraining, transformers.MegatronBertForPreTraining


def as_hugging_face(model: BertForPreTraining) -> nn.Module:
    """The stock class with the model's weights; with SDPA attention where the class supports it."""
    import transformers

    hf_config, state = to_hugging_face(model.state_dict(), model.config)
    cls = getattr(transformers, hf_config.architectures[0])
    converted = cls._from_config(hf_config, attn_implementation="sdpa" if cls._supports_sdpa else "eager")
    converted.load_state_dict(state, strict=False)
    return converted


def make_hugging_face(name: str, config: ModelConfig, seed: int, device: torch.device) -> nn.Module:
    """Make a class of Hugging Face, with the weights of our model of the same architecture, normalization and seed.

    `name` is one of `HUGGING_FACE_CONTENDERS` or `MODERNBERT_CONTENDERS`. A ValueError says if the class has another
    architecture than `config`, or cannot be compiled here.
    """
    eager = name.removesuffix("_compiled")
    architecture = "modernbert" if eager == MODERNBERT else "bert"
    if config.architecture != architecture:
        raise ValueError(f"{name}: its blocks are those of --architecture {architecture}, not {config.architecture}")
    if eager in HUGGING_FACE:
        config = dataclasses.replace(config, normalization=HUGGING_FACE[eager])
    if name != eager:
        select_backend("compiled", device.type, config.hidden_size)  # raises where nothing can be compiled
    torch.manual_seed(seed)
    model = as_hugging_face(make_model(config))
    if name != eager:
        model.compile()
    return model
