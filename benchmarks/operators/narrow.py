"""A narrow model in our engine on a CPU: the end of its step has as many operators as a wide one's."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from benchmarks.batches import pattern_batch
from benchmarks.engines import deepspeed_json, model_section
from benchmarks.operators.recording import MODEL_PARTS, Recorder, Work
from bert_pld.config import BATCH_KEYS, RunConfig, load_config
from bert_pld.model import BertForPreTraining, use_backend
from bert_pld.training.boundary import REPLACED
from bert_pld.training.engine import make_engine

WIDTH, SEQ_LENGTH, MICRO_BATCH_SIZE = 64, 16, 2
_WARMUP_STEPS = 2


def narrow_run(
    dtype: str, zero_stage: int, optimizer: str, num_layers: int, vocab_size: int = 128, accumulation_steps: int = 1
) -> RunConfig:
    """Return the configuration of a model of width 64 without dropping, with all batch sizes."""
    settings = deepspeed_json(dtype, zero_stage, MICRO_BATCH_SIZE, optimizer)
    settings["gradient_accumulation_steps"] = accumulation_steps
    sizes = {"num_layers": num_layers, "vocab_size": vocab_size, "max_position_embeddings": SEQ_LENGTH}
    run = load_config(
        {
            **settings,
            "model": {**model_section(WIDTH, **sizes), "next_sentence_prediction": True},
            "data": {"seq_length": SEQ_LENGTH},
            "progressive_layer_drop": {"enabled": False},
        }
    )
    batch_sizes = dict(zip(BATCH_KEYS, run.batch_sizes(1), strict=True))
    return dataclasses.replace(run, deepspeed={**run.deepspeed, **batch_sizes})


def narrow_engine(run: RunConfig, kernels: str = "reference") -> Any:
    """Return an engine as training makes it; with kernels other than `reference` within `as_on_a_gpu` only."""
    torch.manual_seed(0)
    model = BertForPreTraining(run.model)
    use_backend(model, kernels, "cpu")
    return make_engine(run, model)


def record_boundary(run: RunConfig, boundary: str = "bert_pld") -> list[Work]:
    """Return what an engine's third step does outside its model: accumulation, reduction, norm, clipping, update.

    `boundary`: `bert_pld`, or `DeepSpeed` for its own methods.
    """
    engine = narrow_engine(run)
    if boundary == "DeepSpeed":
        for name in REPLACED:
            vars(engine.optimizer).pop(name, None)  # reveals the method of DeepSpeed's class
    batch = pattern_batch(run.model, MICRO_BATCH_SIZE, SEQ_LENGTH, 0, "cpu")
    for _ in range(_WARMUP_STEPS + 1):
        recorder = Recorder(engine.module)
        for _ in range(engine.gradient_accumulation_steps()):
            loss = engine(**batch)["loss"]
            with recorder:
                recorder.part = "reduction"
                engine.backward(loss)
                recorder.part = "boundary"
                engine.step()
    return [one for one in recorder.work if one.part not in MODEL_PARTS]
