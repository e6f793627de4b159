"""RoBERTa and the classes with its parameters: XLM-RoBERTa and CamemBERT.

Their first position has the number pad_token_id + 1. A model read from them keeps the unused rows before it
(`model.position_offset`), so that an export gives the same tensors back; another model gets rows of zeros there.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from bert_pld.config import ModelConfig
from bert_pld.model.hugging_face.family import Family, Names, bert_block_names, bert_embedding_names


@dataclasses.dataclass(frozen=True)
class RobertaFamily(Family):
    """`RobertaModel`, `RobertaForMaskedLM`."""

    head_activation: ClassVar[str | None] = "gelu"
    tied: ClassVar[dict[str, str]] = {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def read_config(self, hf_config: Any) -> ModelConfig:
        """Return our configuration of a model with theirs; a ValueError names an option that we do not support."""
        config = super().read_config(hf_config)
        offset = (hf_config.pad_token_id or 0) + 1
        positions = config.max_position_embeddings - offset
        return dataclasses.replace(config, position_offset=offset, max_position_embeddings=positions)

    def unused_positions(self, pad_token_id: int) -> int:
        """Return the rows of their position embeddings before that of the first token."""
        return pad_token_id + 1

    def names(self, config: ModelConfig) -> Names:
        """Yield the names of all parameters of our model."""
        yield from bert_embedding_names("roberta.embeddings", config)
        for index in range(config.num_layers):
            yield from bert_block_names(f"encoder.blocks.{index}", f"roberta.encoder.layer.{index}")
        for kind in ("weight", "bias"):
            yield f"mlm_head.transform.{kind}", (f"lm_head.dense.{kind}",)
            yield f"mlm_head.norm.{kind}", (f"lm_head.layer_norm.{kind}",)
        yield "mlm_head.bias", ("lm_head.bias",)


ROBERTA = RobertaFamily("roberta", "Roberta", "roberta")
XLM_ROBERTA = RobertaFamily("xlm-roberta", "XLMRoberta", "roberta")
CAMEMBERT = RobertaFamily("camembert", "Camembert", "roberta")
