"""Learning-rate schedules DeepSpeed lacks: the paper's linear warm-up followed by exponential decay."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from bert_pld.config import ConfigError

OUR_SCHEDULERS = ("WarmupExpDecayLR",)


@dataclasses.dataclass(frozen=True)
class WarmupExpDecay:
    """lr(t) as a share of its peak: t / warmup, then decay_rate ** ((t − warmup) / decay_step).

    The paper's run: 2 % of the steps, then × 0.99 each 1,000 steps.
    """

    warmup_num_steps: int
    decay_rate: float = 0.99
    decay_step: int = 1000

    def share(self, step: int) -> float:
        """The learning rate of optimizer step `step` (from 0) over the peak."""
        if step < self.warmup_num_steps:
            return (step + 1) / self.warmup_num_steps
        return self.decay_rate ** ((step - self.warmup_num_steps) / self.decay_step)


def build_scheduler(block: Mapping[str, Any], max_steps: int, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """Make the scheduler that a `scheduler` block of ours describes.

    `params`: `warmup_max_lr` (default: the optimizer's lr), `warmup_num_steps` (default: 2 % of max_steps),
    `decay_rate` (0.99), `decay_step` (1000).

    Raises:
        ConfigError: an unknown parameter, or one out of range.
    """
    params = dict(block.get("params", {}))
    peak = params.pop("warmup_max_lr", None)
    params.setdefault("warmup_num_steps", max(1, round(0.02 * max_steps)))
    fields = [field.name for field in dataclasses.fields(WarmupExpDecay)]
    unknown = sorted(set(params) - set(fields))
    if unknown:
        raise ConfigError(f"scheduler.params.{unknown[0]}: unknown key; valid: warmup_max_lr, {', '.join(fields)}")
    schedule = WarmupExpDecay(**params)
    if schedule.warmup_num_steps < 1 or schedule.decay_step < 1 or not 0 < schedule.decay_rate <= 1:
        raise ConfigError(
            "scheduler.params: warmup_num_steps and decay_step must be >= 1, decay_rate in (0, 1];"
            f" given {dataclasses.asdict(schedule)}"
        )
    if peak is not None:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = float(peak)
    return LambdaLR(optimizer, schedule.share)
