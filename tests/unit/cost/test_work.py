"""How much of the blocks runs over a schedule, against sums over its steps and against the gates that are drawn."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from published_config import PUBLISHED_CONFIG

from bert_pld.config import load_config
from bert_pld.cost.flops import ModelFlops
from bert_pld.cost.work import BlockWork, mean_work
from bert_pld.plan import make_plan
from bert_pld.pld.engine import make_schedule
from bert_pld.pld.gates import draw_gates
from bert_pld.pld.schedule import Schedule

SHAPES = [
    {}, {"depth": "uniform"}, {"keep_first_block": True}, {"temporal": "constant"}, {"keep_last_block": True},
    {"keep_every": 2},
    {"temporal": "linear", "ramp_steps": 200, "warmup_steps": 50, "finish_step": 600},
]  # fmt: skip


@pytest.mark.parametrize("granularity", ["batch", "sample", "token"])
@pytest.mark.parametrize("options", SHAPES)
def test_work_of_a_run_is_the_mean_over_its_steps(options, granularity):
    schedule = Schedule(num_blocks=6, theta_limit=0.4, gamma=0.01, **options)
    steps = [BlockWork.of(schedule.keep_probabilities(step), granularity, 32) for step in range(700)]
    found = mean_work(schedule, 700, granularity, 32)
    assert dataclasses.astuple(found) == pytest.approx(np.mean(list(map(dataclasses.astuple, steps)), axis=0))


def test_work_counts_how_often_the_last_block_that_runs_is_whole():
    kept = (1.0, 0.5, 0.25)
    assert BlockWork.of(kept, "batch", 32) == BlockWork(1.75, 1.75, last_whole=1.0)
    assert BlockWork.of((0.5, 0.25), "batch", 32).last_whole == 1 - 0.5 * 0.75  # no block runs
    assert BlockWork.of(kept, "sample", 32) == BlockWork(1.75, 1.75, last_whole=0.0)
    assert BlockWork.of(kept, "token", 32) == BlockWork(1.75, 1.3125, last_whole=0.0)
    assert BlockWork.of((0.5, 1.0), "token", 32).last_whole == 1.0
    # 0.3 of 32 tokens are 9.6: ten of them run, and at least one does.
    assert BlockWork.of((0.3, 0.01), "token", 32).depth == (10 + 1) / 32


@pytest.mark.parametrize("keep_last_block", [True, False])
@pytest.mark.parametrize("granularity", ["batch", "sample", "token"])
def test_plan_counts_the_flops_of_the_gates_that_are_drawn(granularity, keep_last_block):
    steps, rows, length = 400, 8, 32
    dropping = {"granularity": granularity, "theta": 0.3, "temporal": "linear", "ramp": 0.2, "depth": "uniform"}
    dense = {"keep_first_block": True, "keep_last_block": keep_last_block, "dense_warmup": 0.1, "dense_finish": 0.1}
    changes = {"progressive_layer_drop": {**dropping, **dense}, "training": {"max_steps": steps}}
    run = load_config({**json.loads(PUBLISHED_CONFIG), **changes, "data": {"seq_length": length}})
    plan, schedule, lengths = make_plan(run), make_schedule(run), np.full(rows, length)
    flops = ModelFlops(plan.run.model, length)
    chosen = rows * (length * 0.15 + 1)  # the masked tokens and [CLS]
    counted = 0.0
    sizes = {"rows": rows, "lengths": lengths, "padded_length": length}
    for step in range(steps):
        gates = draw_gates(schedule, granularity=granularity, seed=0, step=step, **sizes)
        counted += flops.gated_blocks(lengths, gates) - flops.left_out(lengths, gates, chosen)
    # By batch, the depth of a step varies by a block and a half: three deviations of the mean over the steps are 3 %.
    tolerance = {"batch": 0.03, "sample": 0.003, "token": 1e-6}[granularity]
    assert counted / steps / rows + flops.heads_per_sequence == pytest.approx(plan.flops_mean, rel=tolerance)
