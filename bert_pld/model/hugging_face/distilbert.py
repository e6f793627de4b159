"""DistilBERT: BERT without segment embeddings, pooler and NSP head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from bert_pld.config import ModelConfig
from bert_pld.model.hugging_face.family import Family, Names, bert_embedding_names


@dataclasses.dataclass(frozen=True)
class DistilBertFamily(Family):
    """`DistilBertModel`, `DistilBertForMaskedLM`."""

    keys: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "num_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "max_position_embeddings": "max_position_embeddings",
        "hidden_dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "initializer_range": "initializer_range",
    }
    activation_key: ClassVar[str] = "activation"
    tied: ClassVar[dict[str, str]] = {
        "vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight",
    }

    def read_config(self, hf_config: Any) -> ModelConfig:
        """Return our configuration of a model with theirs; a ValueError names an option that we do not support."""
        # Its classes have this epsilon in their code, and no key for it.
        return dataclasses.replace(super().read_config(hf_config), type_vocab_size=0, layer_norm_eps=1e-12)

    def fixed_values(self, config: ModelConfig, pad_token_id: int) -> dict[str, Any]:
        """Return the key that says that positions are learned; ours are, even if they began as sinusoids."""
        return {"sinusoidal_pos_embds": False}

    def names(self, config: ModelConfig) -> Names:
        """Yield the names of all parameters of our model."""
        yield from bert_embedding_names("distilbert.embeddings", config)
        for index in range(config.num_layers):
            ours, theirs = f"encoder.blocks.{index}", f"distilbert.transformer.layer.{index}"
            for kind in ("weight", "bias"):
                packed = tuple(f"{theirs}.attention.{part}_lin.{kind}" for part in ("q", "k", "v"))
                yield f"{ours}.qkv_{kind}", packed
                yield f"{ours}.attention_output_{kind}", (f"{theirs}.attention.out_lin.{kind}",)
                yield f"{ours}.attention_norm_{kind}", (f"{theirs}.sa_layer_norm.{kind}",)
                yield f"{ours}.ffn_up_{kind}", (f"{theirs}.ffn.lin1.{kind}",)
                yield f"{ours}.ffn_down_{kind}", (f"{theirs}.ffn.lin2.{kind}",)
                yield f"{ours}.ffn_norm_{kind}", (f"{theirs}.output_layer_norm.{kind}",)
        for kind in ("weight", "bias"):
            yield f"mlm_head.transform.{kind}", (f"vocab_transform.{kind}",)
            yield f"mlm_head.norm.{kind}", (f"vocab_layer_norm.{kind}",)
        yield "mlm_head.bias", ("vocab_projector.bias",)


DISTILBERT = DistilBertFamily("distilbert", "DistilBert", "distilbert")
