"""Completing a run's configuration with what its data, its ranks and its device determine."""

from __future__ import annotations

import dataclasses

import torch

from bert_pld.config import BATCH_KEYS, ConfigError, RunConfig, resolve_batch_sizes
from bert_pld.data.loader import check_matches_model
from bert_pld.data.rows import ShardedRows

_VOCABULARY_MULTIPLE = 8
"""Tensor cores need matrix sizes that are multiples of 8."""


def resolve_config(config: RunConfig, training_rows: ShardedRows, world_size: int, device: torch.device) -> RunConfig:
    """Return the configuration with the vocabulary size, the NSP head and the batch sizes filled in.

    A ValueError is raised for fp16 on a CPU, batch sizes that do not divide, or shards that the model cannot read.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "fp16.enabled: true, but this machine has no GPU and a CPU cannot train in fp16;"
            " use --set fp16.enabled=false, or a GPU"
        )
    attributes, model = training_rows.attributes, config.model
    padded_size = -(-attributes.vocabulary_size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    pairs = model.next_sentence_prediction
    config = config.with_model(
        vocab_size=model.vocab_size or padded_size,
        next_sentence_prediction=attributes.objective == "mlm+nsp" if pairs == "auto" else pairs,
    )
    check_matches_model(training_rows, config.model, config.data.seq_length)
    sizes = dict(zip(BATCH_KEYS, resolve_batch_sizes(config.deepspeed, world_size), strict=True))
    return dataclasses.replace(config, deepspeed={**config.deepspeed, **sizes})
