"""BERT (Post-LN) and MegatronBert (Pre-LN), which have the same heads."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from bert_pld.config import ModelConfig
from bert_pld.model.hugging_face.family import Family, Names, bert_block_names, bert_embedding_names


@dataclasses.dataclass(frozen=True)
class BertFamily(Family):
    """`BertModel`, `BertForMaskedLM`, `BertForPreTraining`."""

    is_named: ClassVar[bool] = False
    has_next_sentence_head: ClassVar[bool] = True
    tied: ClassVar[dict[str, str]] = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def names(self, config: ModelConfig) -> Names:
        """Yield the names of all parameters of our model."""
        pre = config.normalization == "pre"
        yield from bert_embedding_names("bert.embeddings", config)
        if pre:
            for kind in ("weight", "bias"):
                yield f"encoder.final_norm.{kind}", (f"bert.encoder.ln.{kind}",)
        for index in range(config.num_layers):
            yield from bert_block_names(f"encoder.blocks.{index}", f"bert.encoder.layer.{index}", pre)
        for kind in ("weight", "bias"):
            yield f"mlm_head.transform.{kind}", (f"cls.predictions.transform.dense.{kind}",)
            yield f"mlm_head.norm.{kind}", (f"cls.predictions.transform.LayerNorm.{kind}",)
        yield "mlm_head.bias", ("cls.predictions.bias",)
        if config.next_sentence_prediction:
            for kind in ("weight", "bias"):
                yield f"nsp_head.pooler.{kind}", (f"bert.pooler.dense.{kind}",)
                yield f"nsp_head.classifier.{kind}", (f"cls.seq_relationship.{kind}",)


@dataclasses.dataclass(frozen=True)
class MegatronBertFamily(BertFamily):
    """`MegatronBertModel`, `MegatronBertForMaskedLM`, `MegatronBertForPreTraining`."""

    normalization: ClassVar[Literal["pre", "post"]] = "pre"


BERT = BertFamily("bert", "Bert", "bert")
MEGATRON_BERT = MegatronBertFamily("megatron-bert", "MegatronBert", "bert")
