"""The encoder to fine-tune: any model that transformers loads, with a new classifier on top."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bert_pld.files import file_sha256
from bert_pld.finetuning.task import Task

DROPOUTS = (
    ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    ("mlp_dropout", "attention_dropout", "embedding_dropout"),
)
"""Names of the encoder's dropouts in the configurations of BERT and others, and of ModernBERT."""
CLASSIFIER_DROPOUTS = ("classifier_dropout", "classifier_dropout_prob", "cls_dropout", "pooler_dropout")
"""Names of the classifier's dropout in the configurations of BERT, ALBERT, DeBERTa, ModernBERT and others."""

_OFFSET_POSITIONS = (
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Types of models whose first position has the number pad_token_id + 1, so that they have as many positions less."""


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """A Hugging Face model, read once for many fine-tunings."""

    folder: str
    """A folder or a name on the Hub."""
    tokenizer: Any
    config: Any
    from_scratch: bool
    """Whether to use random weights of the same shape, as the baseline for pretraining."""
    weights: str = ""
    """Identity of the pretrained weights, as `identify_weights` returns it."""
    dropout: float | None = None
    """Dropout of hidden states, attention and the classifier's input; None: the configuration's values."""

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        return int(self.tokenizer.pad_token_id or 0)

    def classifier(self, task: Task, seed: int) -> nn.Module:
        """Return an fp32 classifier for a task on top of the encoder; the seed determines all new weights."""
        from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
        from transformers.utils import logging

        changes: dict[str, Any] = {"num_labels": task.num_outputs}
        if self.dropout is not None:
            changes |= dict.fromkeys((*_dropouts_of(self.config), *CLASSIFIER_DROPOUTS), self.dropout)
        config = type(self.config).from_dict({**self.config.to_dict(), **changes})
        kind = AutoModelForTokenClassification if task.tags_words else AutoModelForSequenceClassification
        torch.manual_seed(seed)
        if self.from_scratch:
            model: nn.Module = kind.from_config(config)
            return model.float()
        # transformers warns that the classifier is new and the pretraining heads are unused: both are intended.
        before = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            model, found = kind.from_pretrained(
                self.folder,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # Of another task's classifier; `_encoder_alone` refuses others.
                output_loading_info=True,
            )
            if (weights := _encoder_alone(self.folder, model, found)) is not None:
                torch.manual_seed(seed)
                model = type(model).from_pretrained(None, config=config, dtype=torch.float32, state_dict=weights)
        finally:
            logging.set_verbosity(before)
        return model


def _encoder_alone(folder: str, model: Any, found: dict[str, Any]) -> dict[str, torch.Tensor] | None:
    """Return the weights that a model's encoder found in its folder, or None if there was no classifier among them.

    `found` is what transformers says about the loading. A model that was fine-tuned for one task must not begin the
    next one with that task's classifier. A ModernBERT that was pretrained has a part of its head, which it keeps.
    """
    prefix = f"{model.base_model_prefix}."
    head = [name for name, _ in model.named_parameters() if not name.startswith(prefix)]
    for name, saved, needed in sorted(found["mismatched_keys"]):
        if name not in head:
            raise ValueError(
                f"--model {folder}: {name} has shape {tuple(saved)} in the weights, {tuple(needed)} by config.json"
            )
    # The last of the head's parameters gives the outputs.
    if not head or head[-1] in found["missing_keys"]:
        return None
    left_out = {*head, *found["missing_keys"]}
    return {name: weights for name, weights in model.state_dict().items() if name not in left_out}


def load_encoder(
    folder: str, max_seq_length: int, from_scratch: bool = False, dropout: float | None = None
) -> PretrainedEncoder:
    """Read configuration and tokenizer of an exported model, or of any folder or name that transformers loads.

    Raises:
        ValueError: the model cannot be loaded, has too few positions, has no fast tokenizer, or has other names for its
            dropout than BERT and ModernBERT.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"--model {folder}: neither a bert_pld checkpoint nor a transformers model ({why})") from None
    check_positions(config, max_seq_length)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"--model {folder}: a fast tokenizer (tokenizer.json) is required")
    if dropout is not None and not _dropouts_of(config):
        known = ", or ".join(" and ".join(names) for names in DROPOUTS)
        raise ValueError(f"--dropout {dropout:g}: the model's configuration must have {known}")
    return PretrainedEncoder(folder, tokenizer, config, from_scratch, identify_weights(folder), dropout)


def check_positions(config: Any, max_seq_length: int) -> None:
    """Raise a ValueError if sequences are longer than the model of a transformers configuration has positions for."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or positions < 0:  # XLNet has -1, because its positions are relative.
        return
    if config.model_type in _OFFSET_POSITIONS:
        positions -= (config.pad_token_id or 0) + 1
    if max_seq_length > positions:
        raise ValueError(f"--max_seq_length {max_seq_length}: must be at most {positions}, the model's positions")


def _dropouts_of(config: Any) -> tuple[str, ...]:
    """Return the names of a configuration's dropouts; none if it has other ones than we know."""
    return next((names for names in DROPOUTS if all(hasattr(config, name) for name in names)), ())


def identify_weights(model: str) -> str:
    """Return the SHA-256 of each weight file in a folder, joined by spaces; for a name on the Hub, the name."""
    files = sorted(path for pattern in ("*.safetensors", "*.bin") for path in Path(model).glob(pattern))
    return " ".join(map(file_sha256, files)) or model


def is_hugging_face_folder(path: Path) -> bool:
    """Return whether a folder holds a transformers model rather than a run or checkpoint of bert_pld."""
    try:
        return "model_type" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
