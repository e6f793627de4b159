"""Setting up a run from a JSON file in this process, up to one training step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from bert_pld.config import BATCH_KEYS, RunConfig, load_config
from bert_pld.data.loader import training_batches
from bert_pld.data.order import BatchShare
from bert_pld.data.rows import ShardedRows
from bert_pld.model import make_model, use_backend
from bert_pld.training.engine import make_engine
from bert_pld.training.prepare import resolve_config
from bert_pld.training.records import Monitors

SMALL = (
    "model.preset=null", "model.hidden_size=16", "model.num_layers=2", "model.num_attention_heads=2",
    "model.intermediate_size=32", "data.seq_length=32", "data.workers=0", "training.max_steps=100",
)  # fmt: skip


def set_up(path: Path, rows: ShardedRows, run_dir: Path, overrides: tuple[str, ...] = SMALL) -> tuple[RunConfig, Any]:
    """Do what `pretrain` does before its first step, except for the process group; return configuration and engine."""
    config = resolve_config(load_config(path, overrides), rows, 1, torch.device("cpu"))
    torch.manual_seed(0)
    model = make_model(config.model)
    use_backend(model, config.model.kernels, "cpu")
    engine = make_engine(config, model)
    Monitors(run_dir, config)
    return config, engine


def train_one_step(config: RunConfig, engine: Any, rows: ShardedRows) -> float:
    """Train one optimizer step; return the loss of its last micro-batch."""
    _, micro, accumulation = (config.deepspeed[key] for key in BATCH_KEYS)
    share = BatchShare(micro, accumulation)
    (step,) = training_batches(rows, config.data, share, seed=1, num_steps=1)
    for batch in step:
        loss = engine(**batch.model_inputs(), mlm_denominator=float(batch.masked_tokens))["loss"]
        engine.backward(loss)
        engine.step()
    assert engine.global_steps == 1
    return loss.item()


def disagreements(config: RunConfig, engine: Any) -> list[str]:
    """Return where our reading of a configuration differs from what DeepSpeed runs."""
    enabled = {"fp16": engine.fp16_enabled(), "bf16": engine.bfloat16_enabled()}
    running = {
        "precision": next((name for name, is_on in enabled.items() if is_on), "fp32"),
        "zero_stage": engine.zero_optimization_stage(),
        "batch sizes": (
            engine.train_batch_size(),
            engine.train_micro_batch_size_per_gpu(),
            engine.gradient_accumulation_steps(),
        ),
    }
    ours = {
        "precision": config.precision,
        "zero_stage": config.zero_stage,
        "batch sizes": tuple(config.deepspeed[key] for key in BATCH_KEYS),
    }
    readers = {"gradient_clipping": engine.gradient_clipping, "steps_per_print": engine.steps_per_print}
    readers["prescale_gradients"] = lambda: not engine.postscale_gradients()
    for key in readers.keys() & config.deepspeed.keys():
        running[key], ours[key] = readers[key](), config.deepspeed[key]
    given = config.deepspeed.get("optimizer", {}).get("params", {})
    if "scheduler" not in config.deepspeed and "lr" in given:
        running["lr"], ours["lr"] = engine.get_lr()[0], given["lr"]
    return [f"{key}: {ours[key]!r} here, {running[key]!r} in DeepSpeed" for key in ours if ours[key] != running[key]]


def write_json(path: Path, content: Any) -> Path:
    """Write text as it is, and anything else as JSON."""
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path
