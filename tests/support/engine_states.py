"""Engines of a small model, some steps of training, and their states: saved from one engine, restored into another."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs import small_config

from bert_pld.checkpoint.gather import StateGatherer
from bert_pld.checkpoint.safetensors_file import write_tensors
from bert_pld.checkpoint.zero_state import read_scalars, restore_scalars
from bert_pld.config import DataConfig, load_config
from bert_pld.data.batches import MicroBatch
from bert_pld.data.loader import training_batches
from bert_pld.data.nvidia_rows import open_rows
from bert_pld.data.order import BatchShare
from bert_pld.model import BertForPreTraining, use_backend
from bert_pld.training.engine import make_engine

Tensors = dict[str, dict[str, np.ndarray]]
"""Kind of tensor → parameter → values."""


def six_batches(corpus: Path) -> list[MicroBatch]:
    """Return the only micro-batch of each of six steps."""
    steps = training_batches(open_rows(corpus, "train"), DataConfig(workers=0), BatchShare(8), seed=1, num_steps=6)
    return [step[0] for step in steps]


def start(changes: Mapping[str, Any], weights: dict[str, np.ndarray] | None = None) -> Any:
    """Make an engine of the small configuration with these blocks, with given weights or the same new ones."""
    model_block = {"vocab_size": 64, "next_sentence_prediction": True, **changes.get("model", {})}
    config = load_config(small_config(train_micro_batch_size_per_gpu=8, **{**changes, "model": model_block}))
    torch.manual_seed(0)
    model = BertForPreTraining(config.model)
    if weights is not None:
        model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    use_backend(model, "reference", "cpu")
    return make_engine(config, model)


def train(engine: Any, batches: Sequence[MicroBatch], first: int, last: int) -> list[float]:
    """Train the steps [first, last); return their losses."""
    losses = []
    for number in range(first, last):
        torch.manual_seed(number)
        batch = batches[number]
        outputs = engine(**batch.model_inputs(), mlm_denominator=float(batch.masked_tokens))
        engine.backward(outputs["loss"])
        engine.step()
        losses.append(outputs["loss"].item())
    return losses


def snapshot(engine: Any) -> tuple[Tensors, dict[str, Any]]:
    """Return the engine's tensors and numbers, as a checkpoint holds them."""
    gatherer = StateGatherer(engine, None)
    kinds, scalars = gatherer.states()
    tensors = {kind: copy.deepcopy(gatherer.gather(kind, names, to_rank=0)) for kind, names in kinds.items()}
    return tensors, json.loads(json.dumps(read_scalars(engine, scalars)))


def restore(changes: Mapping[str, Any], tensors: Tensors, scalars: dict[str, Any], folder: Path, step: int) -> Any:
    """Make an engine that goes on from a snapshot after `step` steps."""
    for kind, arrays in tensors.items():
        write_tensors(folder / kind, arrays)
    engine = start(changes, tensors["weights"])
    gatherer = StateGatherer(engine, None)
    gatherer.load({kind: folder / kind for kind in tensors})
    restore_scalars(engine, gatherer.pieces, scalars, step)
    return engine
