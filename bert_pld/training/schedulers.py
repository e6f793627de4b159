"""Learning-rate schedules: the two that we build ourselves, torch's, and those that DeepSpeed builds from the JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LambdaLR

from bert_pld.config import ConfigError, RunConfig
from bert_pld.config.auto import DEFAULT_OPTIMIZER, default_decay, default_warmup, group_rate
from bert_pld.config.errors import nearest
from bert_pld.config.mask_schedule import MaskSchedule
from bert_pld.training.block_params import check_params, defaults_of

OUR_SCHEDULERS = ("WarmupExpDecayLR", "WarmupStableDecayLR")
_OF_DEEPSPEED = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest")
_OF_TORCH = (
    *("StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts"),
    *("LinearLR", "ConstantLR", "PolynomialLR", "OneCycleLR"),
)
"""Schedules of torch that a JSON can describe in full, and that need nothing but the step."""
_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1.0 - math.sqrt(progress),
}
"""Curves from 1 to 0 over the progress from 0 to 1."""
_EXP_DECAY = {"warmup_max_lr": None, "warmup_num_steps": 1, "decay_rate": 0.99, "decay_step": 1000}
_STABLE_DECAY = {
    **{"warmup_max_lr": None, "warmup_num_steps": 0, "decay_num_steps": 0, "total_num_steps": 1},
    **{"warmup_type": tuple(_SHAPES), "decay_type": tuple(_SHAPES), "min_lr_ratio": 0.0},
}
"""Parameters with a value of their type; a tuple of words has the choices."""


@dataclasses.dataclass(frozen=True)
class WarmupExpDecay:
    """lr(t) as a share of its peak: t / warmup, then decay_rate ** ((t − warmup) / decay_step).

    The paper's run: warm-up over 2 % of the steps, then × 0.99 every 1,000 steps.
    """

    warmup_num_steps: int
    decay_rate: float = 0.99
    decay_step: int = 1000

    def __post_init__(self) -> None:
        if self.warmup_num_steps < 1 or self.decay_step < 1 or not 0 < self.decay_rate <= 1:
            raise ConfigError(
                "scheduler.params: warmup_num_steps and decay_step must be >= 1, decay_rate in (0, 1];"
                f" given {dataclasses.asdict(self)}"
            )

    def share(self, step: int) -> float:
        """Return the learning rate of optimizer step `step` (from 0) as a share of the peak."""
        if step < self.warmup_num_steps:
            return (step + 1) / self.warmup_num_steps
        return self.decay_rate ** ((step - self.warmup_num_steps) / self.decay_step)


@dataclasses.dataclass(frozen=True)
class WarmupStableDecay:
    """lr(t) as a share of its peak: it rises, stays at the peak, and falls in the last steps before `total_num_steps`.

    The rates are those of `get_wsd_schedule` of transformers. So the first step of a warm-up has the rate
    `min_lr_ratio`. Without a decay the rate stays at the peak, also beyond `total_num_steps`.
    """

    warmup_num_steps: int
    decay_num_steps: int
    total_num_steps: int
    warmup_type: str = "linear"
    decay_type: str = "1-sqrt"
    min_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_num_steps + self.decay_num_steps > self.total_num_steps:
            raise ConfigError(
                f"scheduler.params: warmup_num_steps {self.warmup_num_steps} + decay_num_steps {self.decay_num_steps};"
                f" must be at most total_num_steps ({self.total_num_steps})"
            )
        if not 0 <= self.min_lr_ratio <= 1:
            raise ConfigError(f"scheduler.params.min_lr_ratio: {self.min_lr_ratio}; must be in [0, 1]")

    @property
    def decay_start(self) -> int:
        """The first step of the decay."""
        return self.total_num_steps - self.decay_num_steps

    def phase(self, step: int) -> Literal["warmup", "stable", "decay"]:
        """Return the phase of optimizer step `step`, counted from 0."""
        if step < self.warmup_num_steps:
            return "warmup"
        return "stable" if step < self.decay_start or not self.decay_num_steps else "decay"

    def share(self, step: int) -> float:
        """Return the learning rate of optimizer step `step` (from 0) as a share of the peak."""
        phase = self.phase(step)
        if phase == "stable":
            return 1.0
        if phase == "warmup":
            progress = step / self.warmup_num_steps
            share = _SHAPES[self.warmup_type](1.0 - progress)
        else:
            progress = min((step - self.decay_start) / self.decay_num_steps, 1.0)
            share = _SHAPES[self.decay_type](progress)
        return share * (1.0 - self.min_lr_ratio) + self.min_lr_ratio


def check_scheduler(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `scheduler` block with checked `params`; a ConfigError names an unknown type, or a wrong parameter."""
    name, params = block["type"], block.get("params", {})
    valid = (*_OF_DEEPSPEED, *OUR_SCHEDULERS, *_OF_TORCH)
    if name not in valid:
        raise ConfigError(f"scheduler.type: {name!r} is unknown{nearest(name, valid)}; valid: {', '.join(valid)}")
    if name in OUR_SCHEDULERS:
        return dict(block)
    from deepspeed.runtime import lr_schedules

    module = lr_schedules if name in _OF_DEEPSPEED else torch.optim.lr_scheduler
    defaults = defaults_of(getattr(module, name))
    return {**block, "params": check_params(params, defaults, "scheduler.params", name, allow_lists=True)}


def scheduler_builder(block: Mapping[str, Any], max_steps: int) -> Callable[[torch.optim.Optimizer], Any] | None:
    """Return a function that builds a checked block's schedule around an optimizer; None where DeepSpeed builds it.

    DeepSpeed would give torch's schedules ZeRO's optimizer, which they do not accept.
    """
    if block["type"] in OUR_SCHEDULERS:
        schedule, peak = our_schedule(block, max_steps), block.get("params", {}).get("warmup_max_lr")
        return lambda optimizer: _build(schedule, peak, optimizer)
    if block["type"] in _OF_TORCH:
        cls = getattr(torch.optim.lr_scheduler, block["type"])
        return lambda optimizer: cls(optimizer, **block["params"])
    return None


def our_schedule(block: Mapping[str, Any] | None, max_steps: int) -> WarmupExpDecay | WarmupStableDecay | None:
    """Return the schedule of a `scheduler` block whose type is in `OUR_SCHEDULERS`; None for others.

    Without them, `warmup_num_steps` is 2 % of `max_steps`, `decay_num_steps` 10 %, and `total_num_steps` all. An
    unknown parameter, or one out of range, raises a ConfigError.
    """
    kind = None if block is None else block["type"]
    if block is None or kind not in OUR_SCHEDULERS:
        return None
    valid = _STABLE_DECAY if kind == "WarmupStableDecayLR" else _EXP_DECAY
    params = check_params(block.get("params", {}), valid, "scheduler.params", kind)
    params.pop("warmup_max_lr", None)
    params.setdefault("warmup_num_steps", default_warmup(max_steps))
    if kind == "WarmupExpDecayLR":
        return WarmupExpDecay(**params)
    params.setdefault("total_num_steps", max_steps)
    params.setdefault("decay_num_steps", default_decay(max_steps))
    return WarmupStableDecay(**params)


@dataclasses.dataclass(frozen=True)
class Rates:
    """What changes over a run, in one optimizer step."""

    step: int
    """Number of the step, from 0."""
    phase: str | None
    """Phase of the learning rate, if it has phases."""
    lr: float | None
    """Learning rate; None if another program's schedule sets it."""
    mask_probability: float
    """Share of the tokens that are masked."""


def rates_by_step(run: RunConfig) -> list[Rates]:
    """Return the rates at the start, the middle and the end of the run, and where the schedules have corners.

    The list is empty if neither the phase of the learning rate nor the share of masked tokens changes.
    """
    max_steps, block, masks = run.training.max_steps, run.deepspeed.get("scheduler"), run.data.mask_probability
    rates = our_schedule(block, max_steps)
    steps = {0, max_steps // 2, max_steps - 1}
    if isinstance(rates, WarmupStableDecay):
        steps |= {rates.warmup_num_steps, rates.decay_start, (rates.decay_start + rates.total_num_steps) // 2}
    if isinstance(masks, MaskSchedule):
        steps |= {round(masks.after), round(masks.after + (masks.over or 0.0))}
    elif not isinstance(rates, WarmupStableDecay):
        return []
    peak = ((block or {}).get("params") or {}).get("warmup_max_lr")
    if peak is None:
        peak = group_rate(run.deepspeed.get("optimizer", DEFAULT_OPTIMIZER))
    return [
        Rates(
            step=step,
            phase=rates.phase(step) if isinstance(rates, WarmupStableDecay) else None,
            lr=None if rates is None else peak * rates.share(step),
            mask_probability=run.data.mask_probability_at(step),
        )
        for step in sorted(steps)
        if 0 <= step < max_steps
    ]


def _build(schedule: Any, peak: float | None, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """Build a schedule around an optimizer, with the peak or, without one, the optimizer's own rate."""
    if peak is not None:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = float(peak)
    return LambdaLR(optimizer, schedule.share)
