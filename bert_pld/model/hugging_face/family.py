"""What a family of Hugging Face's classes is to us: its configuration, its parameters' names, what its classes can do.

A file beside this one defines a family, or a few similar ones; `FAMILIES` in `__init__` lists them by model type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from bert_pld.config import ModelConfig

Names = Iterator[tuple[str, tuple[str, ...]]]
"""One of our parameters' names, and the names of theirs that ours joins along its first dimension."""

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
"""Our activations → theirs."""
_OUR_ACTIVATIONS = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
# Other names of the same functions.
_OUR_ACTIVATIONS |= {"gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_python": "gelu"}


@dataclasses.dataclass(frozen=True)
class Family:
    """Base of a family; its methods are for classes whose configuration has BERT's keys."""

    model_type: str
    """`model_type` in their config.json, and our `model.family` where normalization alone does not say it."""
    class_prefix: str
    """Beginning of its classes' names: `Bert` for `BertConfig` and `BertForMaskedLM`."""
    encoder: str
    """Attribute of the encoder in a class with a head, which begins the names of the encoder's parameters."""

    keys: ClassVar[Mapping[str, str]] = {
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
    """Our keys of the model → theirs."""
    activation_key: ClassVar[str] = "hidden_act"
    normalization: ClassVar[Literal["pre", "post"]] = "post"
    is_named: ClassVar[bool] = True
    """Whether `model.family` names it; otherwise it is the default of its normalization."""
    tied: ClassVar[Mapping[str, str]] = {}
    """Names of the decoder that hold the same values as another parameter, and that parameter."""
    not_learned: ClassVar[tuple[str, ...]] = ("embeddings.position_ids", "embeddings.token_type_ids")
    """Buffers in older files, without the encoder's prefix."""
    has_next_sentence_head: ClassVar[bool] = False
    """Whether a class with an NSP head exists."""
    head_activation: ClassVar[str | None] = None
    """Their MLM head's activation where it is not that of the blocks."""

    def names(self, config: ModelConfig) -> Names:
        """Yield the names of all parameters of our model."""
        raise NotImplementedError

    def read_config(self, hf_config: Any) -> ModelConfig:
        """Return our configuration of a model with theirs; a ValueError names an option that we do not support."""
        where = f"Hugging Face config ({self.model_type})"
        activation = getattr(hf_config, self.activation_key)
        if activation not in _OUR_ACTIVATIONS:
            allowed = ", ".join(_OUR_ACTIVATIONS)
            raise ValueError(f"{where}, {self.activation_key}: {activation!r}; must be one of {allowed}")
        if self.head_activation is not None and activation != self.head_activation:
            raise ValueError(
                f"{where}, {self.activation_key}: {activation!r}; must be {self.head_activation!r}, which the MLM head"
                " of its classes has whatever this key says"
            )
        positions = getattr(hf_config, "position_embedding_type", None) or "absolute"
        if positions != "absolute":
            raise ValueError(f"{where}, position_embedding_type: {positions!r}; must be 'absolute'")
        for option in ("is_decoder", "add_cross_attention"):
            if getattr(hf_config, option, False):
                raise ValueError(f"{where}, {option}: true; must be false (encoders only)")
        if getattr(hf_config, "tie_word_embeddings", True) is False:
            raise ValueError(f"{where}, tie_word_embeddings: false; must be true, because the decoder is tied here")
        values: dict[str, Any] = {ours: getattr(hf_config, theirs) for ours, theirs in self.keys.items()}
        return ModelConfig(
            **values,
            preset=None,
            family=self.model_type if self.is_named else None,  # type: ignore[arg-type]
            normalization=self.normalization,
            hidden_act=_OUR_ACTIVATIONS[activation],  # type: ignore[arg-type]
            next_sentence_prediction="auto" if self.has_next_sentence_head else False,
        )

    def write_config(self, config: ModelConfig, pad_token_id: int) -> Any:
        """Return their configuration of our model, with the name of its class."""
        import transformers

        values = {theirs: getattr(config, ours) for ours, theirs in self.keys.items()}
        values["vocab_size"] = config.exported_vocab_size or config.vocab_size
        values["max_position_embeddings"] += self.unused_positions(pad_token_id)
        values[self.activation_key] = ACTIVATIONS[config.hidden_act]
        head = "ForPreTraining" if config.next_sentence_prediction else "ForMaskedLM"
        return getattr(transformers, f"{self.class_prefix}Config")(
            **{**values, **self.fixed_values(config, pad_token_id)},
            pad_token_id=pad_token_id,
            tie_word_embeddings=True,
            architectures=[self.class_prefix + head],
        )

    def unused_positions(self, pad_token_id: int) -> int:
        """Return the rows of their position embeddings before that of the first token."""
        return 0

    def fixed_values(self, config: ModelConfig, pad_token_id: int) -> dict[str, Any]:
        """Return the keys of their configuration whose values are not copied from a key of ours."""
        return {}


def bert_block_names(ours: str, theirs: str, pre: bool = False) -> Names:
    """Yield the names of one block of BERT, which RoBERTa and ELECTRA share."""
    for kind in ("weight", "bias"):
        norm = "attention.ln" if pre else "attention.output.LayerNorm"
        yield f"{ours}.attention_norm_{kind}", (f"{theirs}.{norm}.{kind}",)
        packed = tuple(f"{theirs}.attention.self.{part}.{kind}" for part in ("query", "key", "value"))
        yield f"{ours}.qkv_{kind}", packed
        yield f"{ours}.attention_output_{kind}", (f"{theirs}.attention.output.dense.{kind}",)
        yield f"{ours}.ffn_norm_{kind}", (f"{theirs}.{'ln' if pre else 'output.LayerNorm'}.{kind}",)
        yield f"{ours}.ffn_up_{kind}", (f"{theirs}.intermediate.dense.{kind}",)
        yield f"{ours}.ffn_down_{kind}", (f"{theirs}.output.dense.{kind}",)


def bert_embedding_names(theirs: str, config: ModelConfig) -> Names:
    """Yield the names of the embeddings, and of the LayerNorm that follows them in post-normalization."""
    kinds = ("word", "position", *(("token_type",) if config.type_vocab_size else ()))
    for kind in kinds:
        yield f"encoder.embeddings.{kind}.weight", (f"{theirs}.{kind}_embeddings.weight",)
    if config.normalization == "post":
        for part in ("weight", "bias"):
            yield f"encoder.embeddings.norm.{part}", (f"{theirs}.LayerNorm.{part}",)
