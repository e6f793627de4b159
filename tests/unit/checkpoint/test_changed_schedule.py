"""A schedule that a resumed run changes goes on from its step as if it had always been."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime import lr_schedules
from torch import nn
from torch.optim import lr_scheduler

from bert_pld.checkpoint.zero_state import read_scalars, restore_scalars
from bert_pld.training.schedulers import scheduler_builder

STABLE_DECAY = {"type": "WarmupStableDecayLR", "params": {"warmup_num_steps": 2, "decay_num_steps": 8}}
SCHEDULES = {
    "WarmupStableDecayLR": scheduler_builder(STABLE_DECAY, 12),
    "WarmupDecayLR": lambda optimizer: lr_schedules.WarmupDecayLR(optimizer, 12, warmup_num_steps=3, warmup_max_lr=0.5),
    "OneCycle": lambda optimizer: lr_schedules.OneCycle(optimizer, 0.1, 0.4, cycle_first_step_size=4),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=12),
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=3),
}


def make_engine(make_scheduler, lr):
    """An engine as far as its counters, with Adam's groups."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=lr)
    engine = SimpleNamespace(optimizer=optimizer, lr_scheduler=make_scheduler(optimizer), skipped_steps=0)
    engine.train_batch_size = engine.gradient_accumulation_steps = lambda: 1
    return engine


def train(engine, steps):
    rates = []
    for _ in range(steps):
        rates.append((engine.optimizer.param_groups[0]["lr"], engine.optimizer.param_groups[0]["betas"]))
        engine.optimizer.step()
        engine.lr_scheduler.step()
    return rates


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("skipped", [0, 2])
@pytest.mark.parametrize("name", SCHEDULES)
def test_changed_schedule_gives_the_rates_of_a_run_that_always_had_it(name, skipped):
    earlier = make_engine(lambda optimizer: lr_scheduler.ConstantLR(optimizer, factor=0.5), lr=0.01)
    train(earlier, 7 - skipped)
    earlier.skipped_steps = skipped
    resumed = make_engine(SCHEDULES[name], lr=0.2)
    restore_scalars(resumed, [], read_scalars(earlier, {}), step=7, same_rates=False)
    assert train(resumed, 5) == train(make_engine(SCHEDULES[name], lr=0.2), 12)[7 - skipped : 12 - skipped]


def test_unchanged_schedule_is_restored_as_it_was():
    earlier = make_engine(SCHEDULES["WarmupStableDecayLR"], lr=0.2)
    before = train(earlier, 7)
    resumed = make_engine(SCHEDULES["WarmupStableDecayLR"], lr=0.2)
    restore_scalars(resumed, [], read_scalars(earlier, {}), step=7)
    assert before + train(resumed, 5) == train(make_engine(SCHEDULES["WarmupStableDecayLR"], lr=0.2), 12)
