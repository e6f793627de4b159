"""Our learning-rate schedules match their formulas and those of transformers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import get_wsd_schedule

from bert_pld.config import ConfigError, load_config
from bert_pld.training.schedulers import WarmupExpDecay, our_schedule, scheduler_builder


def rates(make_scheduler, steps, lr=1.0):
    """Return the learning rate of each step under a schedule."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=lr)
    scheduler, found = make_scheduler(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def stable_decay(max_steps=100, **params):
    return {"type": "WarmupStableDecayLR", "params": params}, max_steps


def test_paper_s_schedule_warms_up_linearly_then_decays_every_thousand_steps():
    schedule = WarmupExpDecay(warmup_num_steps=4000)
    assert schedule.share(0) == 1 / 4000
    assert schedule.share(1999) == 0.5
    assert schedule.share(4000) == 1.0
    assert schedule.share(5000) == pytest.approx(0.99)
    assert schedule.share(200_000) == pytest.approx(0.99**196)


def test_scheduler_sets_the_peak_and_follows_the_optimizer():
    params = {"warmup_max_lr": 0.2, "warmup_num_steps": 2, "decay_rate": 0.5, "decay_step": 1}
    build = scheduler_builder({"type": "WarmupExpDecayLR", "params": params}, 100)
    assert rates(build, 4) == pytest.approx([0.1, 0.2, 0.2, 0.1])


@pytest.mark.parametrize("warmup_type", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("decay_type", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize(("warmup", "decay", "least"), [(7, 23, 0.0), (0, 60, 0.1), (10, 50, 0.25)])
def test_stable_rate_with_a_decay_is_that_of_transformers_at_every_step(warmup_type, decay_type, warmup, decay, least):
    block, max_steps = stable_decay(
        warmup_num_steps=warmup,
        decay_num_steps=decay,
        total_num_steps=60,
        warmup_type=warmup_type,
        decay_type=decay_type,
        min_lr_ratio=least,
    )
    expected = rates(
        lambda optimizer: get_wsd_schedule(
            optimizer, warmup, decay, 60, warmup_type=warmup_type, decay_type=decay_type, min_lr_ratio=least
        ),
        70,
        lr=3e-4,
    )
    assert rates(scheduler_builder(block, max_steps), 70, lr=3e-4) == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_stable_rate_falls_over_the_last_tenth_by_default():
    schedule = our_schedule(*stable_decay(max_steps=1000))
    assert (schedule.warmup_num_steps, schedule.decay_start, schedule.total_num_steps) == (20, 900, 1000)
    assert [schedule.phase(step) for step in (0, 19, 20, 899, 900, 999)] == [
        "warmup", "warmup", "stable", "stable", "decay", "decay",
    ]  # fmt: skip
    automatic = {"scheduler": stable_decay(decay_num_steps="auto", warmup_num_steps="auto")[0]}
    config = load_config({**automatic, "training": {"max_steps": 1000}})
    assert our_schedule(config.deepspeed["scheduler"], 1000) == schedule


def test_rate_without_a_decay_stays_at_the_peak():
    schedule = our_schedule(*stable_decay(warmup_num_steps=0, decay_num_steps=0))
    assert {schedule.share(step) for step in (0, 50, 99, 100, 10**6)} == {1.0}


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("WarmupExpDecayLR", {"total": 1}, r"scheduler\.params\.total: unknown key"),
        ("WarmupExpDecayLR", {"decay_rate": 2.0}, "decay_rate in"),
        ("WarmupStableDecayLR", {"decay_steps": 9}, "decay_steps: unknown key.*did you mean 'decay_num_steps'"),
        ("WarmupStableDecayLR", {"decay_type": "sqrt"}, "decay_type: 'sqrt'; must be one of linear, cosine, 1-sqrt"),
        ("WarmupStableDecayLR", {"warmup_num_steps": 60, "decay_num_steps": 50}, r"at most total_num_steps \(100\)"),
        ("WarmupStableDecayLR", {"decay_num_steps": -1}, r"decay_num_steps: -1; must be an integer >= 0"),
        ("WarmupStableDecayLR", {"min_lr_ratio": 1.5}, r"min_lr_ratio: 1\.5; must be in \[0, 1\]"),
        ("WarmupStableDecayLR", {"min_lr_ratio": [0.1]}, r"min_lr_ratio: \[0\.1\]; must be one number"),
        ("WarmupExpDecayLR", {"warmup_max_lr": [0.1]}, r"warmup_max_lr: \[0\.1\]; must be one number"),
    ],
)
def test_wrong_parameter_of_our_schedules_is_one_line(kind, params, message):
    with pytest.raises(ConfigError, match=message) as error:
        scheduler_builder({"type": kind, "params": params}, 100)
    assert "\n" not in str(error.value)
