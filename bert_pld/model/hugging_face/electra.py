"""ELECTRA's encoder with the MLM head of its generator; the discriminator's own head has no use here."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from bert_pld.config import ModelConfig
from bert_pld.model.hugging_face.family import Family, Names, bert_block_names, bert_embedding_names


@dataclasses.dataclass(frozen=True)
class ElectraFamily(Family):
    """`ElectraModel`, `ElectraForMaskedLM`, `ElectraForPreTraining`."""

    head_activation: ClassVar[str | None] = "gelu"
    tied: ClassVar[dict[str, str]] = {
        "generator_lm_head.weight": "electra.embeddings.word_embeddings.weight",
    }

    def read_config(self, hf_config: Any) -> ModelConfig:
        """Return our configuration of a model with theirs; a ValueError names an option that we do not support."""
        config = super().read_config(hf_config)
        narrow = hf_config.embedding_size != hf_config.hidden_size
        return dataclasses.replace(config, embedding_size=hf_config.embedding_size if narrow else None)

    def fixed_values(self, config: ModelConfig, pad_token_id: int) -> dict[str, Any]:
        """Return the width of the embeddings."""
        return {"embedding_size": config.embedding_size or config.hidden_size}

    def names(self, config: ModelConfig) -> Names:
        """Yield the names of all parameters of our model."""
        yield from bert_embedding_names("electra.embeddings", config)
        for kind in ("weight", "bias") if config.embedding_size else ():
            yield f"encoder.embeddings.projection.{kind}", (f"electra.embeddings_project.{kind}",)
        for index in range(config.num_layers):
            yield from bert_block_names(f"encoder.blocks.{index}", f"electra.encoder.layer.{index}")
        for kind in ("weight", "bias"):
            yield f"mlm_head.transform.{kind}", (f"generator_predictions.dense.{kind}",)
            yield f"mlm_head.norm.{kind}", (f"generator_predictions.LayerNorm.{kind}",)
        yield "mlm_head.bias", ("generator_lm_head.bias",)


ELECTRA = ElectraFamily("electra", "Electra", "electra")
