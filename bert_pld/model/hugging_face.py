"""Conversion between our parameters and those of Hugging Face's classes, in both directions.

`pre` normalization corresponds to `MegatronBertForPreTraining` (model type `megatron-bert`), `post` to
`BertForPreTraining`; a model without an NSP head corresponds to their `…ForMaskedLM`, which has no pooler. The decoder
is tied to the word embeddings in both, so it has no entry of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bert_pld.config import ModelConfig

# Our names → Hugging Face's names.
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
# `gelu_new` is another implementation of the same function.
_OUR_ACTIVATIONS = {theirs: ours for ours, theirs in _ACTIVATIONS.items()} | {"gelu_new": "gelu_tanh"}
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
}
_NORMALIZATIONS = {"megatron-bert": "pre", "bert": "post"}
_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_NOT_LEARNED = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")


def to_hugging_face(
    state: Mapping[str, Tensor], config: ModelConfig, *, pad_token_id: int = 0
) -> tuple[Any, dict[str, Tensor]]:
    """Rename and split our parameters into those of Hugging Face's class.

    Args:
        state: state dict of `bert_pld.model.BertForPreTraining`.
        config: its configuration, with `vocab_size` and `next_sentence_prediction` resolved.
        pad_token_id: id of `[PAD]`.

    Returns:
        A `BertConfig` or `MegatronBertConfig` whose `architectures` names the class, and contiguous tensors under
        Hugging Face's names. As in a file written by `save_pretrained`, the tied decoder is left out.

    Raises:
        ValueError: a parameter of `state` is missing, unknown or of the wrong shape.
    """
    import transformers

    pre = config.normalization == "pre"
    config_class = transformers.MegatronBertConfig if pre else transformers.BertConfig
    head = "ForPreTraining" if config.next_sentence_prediction else "ForMaskedLM"
    hf_config = config_class(
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        hidden_act=_ACTIVATIONS[config.hidden_act],
        pad_token_id=pad_token_id,
        tie_word_embeddings=True,
        architectures=[("MegatronBert" if pre else "Bert") + head],
    )
    shapes = _shapes(config)
    _check(state, shapes, "our state dict")
    hf_state: dict[str, Tensor] = {}
    for ours, theirs in _names(config):
        parts = state[ours].detach().split(config.hidden_size) if len(theirs) == 3 else (state[ours].detach(),)
        for name, part in zip(theirs, parts, strict=True):
            hf_state[name] = part.contiguous()
    return hf_config, hf_state


def from_hugging_face(hf_config: Any, hf_state: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Rename and join the parameters of a Hugging Face BERT or MegatronBert into ours.

    Args:
        hf_config: a `BertConfig` or `MegatronBertConfig`.
        hf_state: state dict of its `…ForPreTraining` class, or of its `…ForMaskedLM` class (then our model has no NSP
            head), with or without the tied decoder.

    Returns:
        The configuration and the state dict of `bert_pld.model.BertForPreTraining`.

    Raises:
        ValueError: another model type, an option that our model does not support, an untied decoder, or a parameter
            that is missing, unknown or of the wrong shape.
    """
    model_type = getattr(hf_config, "model_type", None)
    if model_type not in _NORMALIZATIONS:
        raise ValueError(f"Hugging Face model type {model_type!r}: must be one of {', '.join(_NORMALIZATIONS)}")
    if hf_config.hidden_act not in _OUR_ACTIVATIONS:
        allowed = ", ".join(_OUR_ACTIVATIONS)
        raise ValueError(f"Hugging Face config, hidden_act: {hf_config.hidden_act!r}; must be one of {allowed}")
    positions = getattr(hf_config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise ValueError(f"Hugging Face config, position_embedding_type: {positions!r}; must be 'absolute'")
    for option in ("is_decoder", "add_cross_attention"):
        if getattr(hf_config, option, False):
            raise ValueError(f"Hugging Face config, {option}: true; must be false (encoders only)")
    config = ModelConfig(
        **{ours: getattr(hf_config, theirs) for ours, theirs in _SIZES.items()},
        preset=None,
        normalization=_NORMALIZATIONS[model_type],  # type: ignore[arg-type]
        hidden_act=_OUR_ACTIVATIONS[hf_config.hidden_act],  # type: ignore[arg-type]
        next_sentence_prediction="cls.seq_relationship.weight" in hf_state,
    )
    untied = {name: tensor for name, tensor in hf_state.items() if name not in (*_TIED, *_NOT_LEARNED)}
    for name, source in _TIED.items():
        if name in hf_state and source in hf_state and not torch.equal(hf_state[name], hf_state[source]):
            raise ValueError(f"Hugging Face state dict, {name}: differs from {source}; the decoder must be tied")
    names = list(_names(config))
    shapes = _shapes(config)
    hf_shapes = {
        theirs: (shapes[ours][0] // len(group), *shapes[ours][1:]) for ours, group in names for theirs in group
    }
    _check(untied, hf_shapes, "Hugging Face state dict")
    return config, {
        ours: torch.cat([untied[theirs].detach() for theirs in group]) if len(group) > 1 else untied[group[0]].detach()
        for ours, group in names
    }


def _names(config: ModelConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each of our names with its Hugging Face name, or with three names for a packed q, k, v parameter."""
    pre = config.normalization == "pre"
    for name in ("word", "position", "token_type"):
        yield f"encoder.embeddings.{name}.weight", (f"bert.embeddings.{name}_embeddings.weight",)
    for kind in ("weight", "bias"):
        if pre:
            yield f"encoder.final_norm.{kind}", (f"bert.encoder.ln.{kind}",)
        else:
            yield f"encoder.embeddings.norm.{kind}", (f"bert.embeddings.LayerNorm.{kind}",)
    for index in range(config.num_layers):
        ours, theirs = f"encoder.blocks.{index}", f"bert.encoder.layer.{index}"
        for kind in ("weight", "bias"):
            norm = "attention.ln" if pre else "attention.output.LayerNorm"
            yield f"{ours}.attention_norm_{kind}", (f"{theirs}.{norm}.{kind}",)
            packed = tuple(f"{theirs}.attention.self.{part}.{kind}" for part in ("query", "key", "value"))
            yield f"{ours}.qkv_{kind}", packed
            yield f"{ours}.attention_output_{kind}", (f"{theirs}.attention.output.dense.{kind}",)
            yield f"{ours}.ffn_norm_{kind}", (f"{theirs}.{'ln' if pre else 'output.LayerNorm'}.{kind}",)
            yield f"{ours}.ffn_up_{kind}", (f"{theirs}.intermediate.dense.{kind}",)
            yield f"{ours}.ffn_down_{kind}", (f"{theirs}.output.dense.{kind}",)
    for kind in ("weight", "bias"):
        yield f"mlm_head.transform.{kind}", (f"cls.predictions.transform.dense.{kind}",)
        yield f"mlm_head.norm.{kind}", (f"cls.predictions.transform.LayerNorm.{kind}",)
    yield "mlm_head.bias", ("cls.predictions.bias",)
    if config.next_sentence_prediction:
        for kind in ("weight", "bias"):
            yield f"nsp_head.pooler.{kind}", (f"bert.pooler.dense.{kind}",)
            yield f"nsp_head.classifier.{kind}", (f"cls.seq_relationship.{kind}",)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter, by our names."""
    from bert_pld.model.bert import BertForPreTraining

    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in BertForPreTraining(config).state_dict().items()}


def _check(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise a ValueError unless the state dict has exactly these names and shapes."""
    for name, shape in shapes.items():
        if name not in state:
            raise ValueError(f"{where}: {name} {list(shape)} is missing")
        if tuple(state[name].shape) != shape:
            raise ValueError(f"{where}, {name}: shape {list(state[name].shape)}; must be {list(shape)}")
    for name in state:
        if name not in shapes:
            raise ValueError(f"{where}: unexpected {name} {list(state[name].shape)}")
