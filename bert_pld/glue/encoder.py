"""The encoder to fine-tune: any folder that transformers loads, with a fresh classifier on top."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bert_pld.files import file_sha256
from bert_pld.glue.tasks import Task

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
CLASSIFIER_DROPOUTS = ("classifier_dropout", "classifier_dropout_prob", "cls_dropout", "pooler_dropout")
"""By the classes of transformers that use the former names, of BERT, ALBERT and DeBERTa."""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A Hugging Face model's folder, read once for many fine-tunings."""

    folder: str
    tokenizer: Any
    config: Any
    from_scratch: bool
    """Fresh weights of the same shape: what pretraining is to be compared with."""
    weights: str = ""
    """What tells them from others: see `identify_weights`."""
    dropout: float | None = None
    """Of hidden states, attention and the classifier's input; None: as the configuration has it."""

    @property
    def pad_id(self) -> int:
        """Of the vocabulary."""
        return int(self.tokenizer.pad_token_id or 0)

    def classifier(self, task: Task, seed: int) -> nn.Module:
        """A fresh classifier over the encoder's weights, its own weights a function of the seed; fp32."""
        from transformers import AutoModelForSequenceClassification
        from transformers.utils import logging

        changes: dict[str, Any] = {"num_labels": task.num_outputs}
        if self.dropout is not None:
            changes |= dict.fromkeys((*DROPOUTS, *CLASSIFIER_DROPOUTS), self.dropout)
        config = type(self.config).from_dict({**self.config.to_dict(), **changes})
        torch.manual_seed(seed)
        if self.from_scratch:
            model: nn.Module = AutoModelForSequenceClassification.from_config(config)
            return model.float()
        before = logging.get_verbosity()
        logging.set_verbosity_error()  # that the classifier is new, and the pretraining heads unused, is what is wanted
        try:
            loaded: nn.Module = AutoModelForSequenceClassification.from_pretrained(
                self.folder, config=config, dtype=torch.float32
            )
        finally:
            logging.set_verbosity(before)
        return loaded


def load_encoder(folder: str, max_seq_length: int, from_scratch: bool = False, dropout: float | None = None) -> Encoder:
    """Read a model's configuration and tokenizer.

    Args:
        folder: an export, or any folder or name that transformers knows.
        max_seq_length: tokens wanted.
        from_scratch: leave its weights.
        dropout: in place of the configuration's, in [0, 1).

    Raises:
        ValueError: it is none, has fewer positions, or names its dropout otherwise than BERT.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--model {folder}: neither a checkpoint of ours nor a model of transformers ({why})"
        ) from None
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and max_seq_length > positions:
        raise ValueError(f"--max_seq_length {max_seq_length}: must be at most {positions}, the positions of the model")
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"--model {folder}: its tokenizer has no tokenizer.json, which is needed here")
    if dropout is not None and not all(hasattr(config, name) for name in DROPOUTS):
        raise ValueError(f"--dropout {dropout:g}: the model's configuration must have {' and '.join(DROPOUTS)}")
    return Encoder(folder, tokenizer, config, from_scratch, identify_weights(folder), dropout)


def identify_weights(model: str) -> str:
    """The SHA-256 of each file of weights in a folder; of what is no folder the name."""
    files = sorted(path for pattern in ("*.safetensors", "*.bin") for path in Path(model).glob(pattern))
    return " ".join(map(file_sha256, files)) or model


def is_hugging_face_folder(path: Path) -> bool:
    """Whether a folder is a model of transformers rather than a run or checkpoint of ours."""
    try:
        return "model_type" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
