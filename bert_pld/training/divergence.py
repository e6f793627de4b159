"""Ending a run that has diverged, before a checkpoint of it is saved."""

from __future__ import annotations

import dataclasses
import json

import torch.distributed as dist

from bert_pld.data.block_order import sample_order
from bert_pld.files import DIVERGED, write_atomically
from bert_pld.training.run import Run


class NonFiniteLossError(ValueError):
    """The loss is NaN or infinite."""


def stop_if_not_finite(run: Run, step: int) -> None:
    """Raise a NonFiniteLossError if any loss up to step `step` was not finite; all ranks call it together.

    With fp16 nothing is raised: its loss scaler skips steps that overflow.
    """
    found = run.metrics.first_non_finite_loss()
    if found is None or run.config.precision == "fp16":
        return
    first_step, rank = found
    run.complete_checkpoint()
    if dist.get_rank() == 0:
        # The exit code is that of any error; a program that starts many runs reads the cause from this file.
        write_atomically(run.output_dir / DIVERGED, json.dumps({"step": first_step, "rank": rank}) + "\n")
    on_rank = f" on rank {rank}" if dist.get_world_size() > 1 else ""
    raise NonFiniteLossError(
        f"loss is not finite at step {first_step}{on_rank} (noticed at step {step});"
        f" rows of its first micro-batch: {_first_rows(run, first_step, rank)};"
        " the last checkpoint is kept; lower the learning rate or use a longer warm-up"
    )


def _first_rows(run: Run, step: int, rank: int) -> list[int]:
    """Return the row indices of a rank's first micro-batch of a step."""
    positions = dataclasses.replace(run.batch_share, rank=rank).positions(step - 1, micro_step=0)
    order = sample_order(run.config.data, len(run.training_rows), run.config.training.seed)
    return order.rows_at(positions)[0].tolist()
