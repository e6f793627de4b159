"""What `pretrain --initialize_from` does up to its first step, in this process, and a checkpoint of the result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bert_pld.checkpoint.format import write_checksums
from bert_pld.config import RunConfig, load_config
from bert_pld.data.rows import ShardedRows
from bert_pld.model import BertForPreTraining, make_model
from bert_pld.training.initial_weights import open_initial_weights
from bert_pld.training.prepare import resolve_config


def begin(
    where: Path | str, rows: ShardedRows, *, new_vocabulary: bool = False, **blocks: dict[str, Any]
) -> tuple[BertForPreTraining, RunConfig, str]:
    """Return the model, in evaluation mode, the resolved configuration, and the lines that the command prints."""
    initial = open_initial_weights(str(where), new_vocabulary)
    assert initial is not None
    values = {"train_batch_size": 8, "data": {"seq_length": rows.attributes.seq_length}, **blocks}
    run = load_config(values, follows=initial.follows)
    initial.check(rows)
    run = dataclasses.replace(run, model=initial.resolved(run.model, rows))
    run = resolve_config(run, rows, 1, torch.device("cpu"))
    torch.manual_seed(run.training.seed)
    model = make_model(run.model)
    return model.eval(), run, "\n".join([*run.notices, *initial.fill(model, run.model, rows)])


def write_checkpoint(run_dir: Path, model: BertForPreTraining, run: RunConfig, rows: ShardedRows) -> Path:
    """Write the checkpoint of a run's first step, without an optimizer; return its folder."""
    folder = run_dir / "checkpoints" / "step_00000001"
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(run.as_json()))
    (folder / "state.json").write_text('{"step": 1}')
    rows.save_tokenizer(folder)
    write_checksums(folder)
    return folder
