"""ModernBERT: rotary positions, gated feed-forwards, no biases, global and local attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from bert_pld.config import ModelConfig
from bert_pld.model.hugging_face.family import ACTIVATIONS, Family, Names

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_FIXED = {
    **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), False),
    "decoder_bias": True,
}
_BLOCK = {
    "attention_norm_weight": "attn_norm.weight",
    "qkv_weight": "attn.Wqkv.weight",
    "attention_output_weight": "attn.Wo.weight",
    "ffn_norm_weight": "mlp_norm.weight",
    "ffn_up_weight": "mlp.Wi.weight",
    "ffn_down_weight": "mlp.Wo.weight",
}


@dataclasses.dataclass(frozen=True)
class ModernBertFamily(Family):
    """`ModernBertModel`, `ModernBertForMaskedLM`."""

    keys: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "max_position_embeddings",
        "hidden_dropout": "mlp_dropout",
        "attention_dropout": "attention_dropout",
        "local_attention": "local_attention",
        "layer_norm_eps": "norm_eps",
        "initializer_range": "initializer_range",
    }
    activation_key: ClassVar[str] = "hidden_activation"
    normalization: ClassVar[Literal["pre", "post"]] = "pre"
    is_named: ClassVar[bool] = False
    tied: ClassVar[dict[str, str]] = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}

    def read_config(self, hf_config: Any) -> ModelConfig:
        """Return our configuration of a model with theirs; a ValueError names an option that we do not support."""
        config = super().read_config(hf_config)
        where = f"Hugging Face config ({self.model_type})"
        equal = {
            **_FIXED,
            "classifier_activation": hf_config.hidden_activation,
            "embedding_dropout": hf_config.mlp_dropout,
        }
        for key, needed in equal.items():
            if getattr(hf_config, key) != needed:
                raise ValueError(f"{where}, {key}: {getattr(hf_config, key)!r}; must be {needed!r} here")
        for kind, rope in hf_config.rope_parameters.items():
            if rope.get("rope_type", "default") != "default":
                raise ValueError(f"{where}, rope_parameters.{kind}.rope_type: {rope['rope_type']!r}; must be 'default'")
        return dataclasses.replace(
            config,
            architecture="modernbert",
            global_attn_every_n_layers=_global_every(hf_config.layer_types, where),
            global_rope_theta=float(hf_config.rope_parameters[_GLOBAL]["rope_theta"]),
            local_rope_theta=float(hf_config.rope_parameters[_LOCAL]["rope_theta"]),
        )

    def fixed_values(self, config: ModelConfig, pad_token_id: int) -> dict[str, Any]:
        """Return the keys of attention and rotary positions; the tokenizer has the ids of the special tokens."""
        thetas = {_GLOBAL: config.global_rope_theta, _LOCAL: config.local_rope_theta}
        return {
            **_FIXED,
            "embedding_dropout": config.hidden_dropout,
            "classifier_activation": ACTIVATIONS[config.hidden_act],
            "layer_types": [_LOCAL if config.is_local(index) else _GLOBAL for index in range(config.num_layers)],
            "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
            **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        }

    def names(self, config: ModelConfig) -> Names:
        """Yield the names of all parameters of our model."""
        yield "encoder.embeddings.word.weight", ("model.embeddings.tok_embeddings.weight",)
        yield "encoder.embeddings.norm.weight", ("model.embeddings.norm.weight",)
        for index in range(config.num_layers):
            for ours, theirs in _BLOCK.items():
                if index or ours != "attention_norm_weight":
                    yield f"encoder.blocks.{index}.{ours}", (f"model.layers.{index}.{theirs}",)
        yield "encoder.final_norm.weight", ("model.final_norm.weight",)
        yield "mlm_head.transform.weight", ("head.dense.weight",)
        yield "mlm_head.norm.weight", ("head.norm.weight",)
        yield "mlm_head.bias", ("decoder.bias",)


def _global_every(layer_types: list[str], where: str) -> int:
    """Return the n for which the first block and every n-th after it attend globally."""
    for every in (3, *range(1, len(layer_types) + 1)):
        if layer_types == [_LOCAL if index % every else _GLOBAL for index in range(len(layer_types))]:
            return every
    raise ValueError(f"{where}, layer_types: must be {_GLOBAL!r} in the first and every n-th block after it")


MODERNBERT = ModernBertFamily("modernbert", "ModernBert", "model")
