"""The end of a run that has diverged: one error, and a file from which a program that starts many runs reads it."""

from __future__ import annotations

import json
from pathlib import Path

import torch.distributed as dist

from bert_pld.files import DIVERGED, write_atomically

REMEDY = "lower the learning rate or use a longer warm-up"


class DivergedError(ValueError):
    """The loss or a weight is not finite, or fp16 skips all steps."""


def record_divergence(run_dir: Path, step: int, rank: int | None) -> None:
    """Write `diverged.json`; all ranks call it. `rank` is the one whose loss was not finite, None if that is not known.

    The exit code is that of any error.
    """
    if dist.get_rank() == 0:
        write_atomically(run_dir / DIVERGED, json.dumps({"step": step, "rank": rank}) + "\n")
