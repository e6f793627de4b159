"""θ(t), p_l(t) and the expected depth against the paper's formulas (arXiv:2010.13369, section 4)."""

from __future__ import annotations

import math

import pytest

from bert_pld.pld.schedule import Schedule


def test_theta_starts_at_one_and_decays_exponentially_to_its_limit():
    schedule = Schedule(num_blocks=12, theta_limit=0.5, gamma=0.001)
    assert schedule.theta(0) == 1.0
    assert schedule.theta(1000) == pytest.approx(0.5 * math.exp(-1.0) + 0.5, rel=1e-12)
    assert schedule.theta(100_000) == pytest.approx(0.5, abs=1e-12)


def test_keep_probability_falls_linearly_with_depth_to_theta():
    schedule = Schedule(num_blocks=4, theta_limit=0.5, temporal="constant")
    assert schedule.keep_probabilities(0) == pytest.approx((0.875, 0.75, 0.625, 0.5))


@pytest.mark.parametrize("num_blocks", [1, 2, 4, 12, 24])
def test_expected_depth_at_half_is_three_l_minus_one_over_four(num_blocks):
    schedule = Schedule(num_blocks=num_blocks, theta_limit=0.5, temporal="constant")
    assert schedule.expected_depth(0) == pytest.approx((3 * num_blocks - 1) / 4)


def test_keep_first_block_never_drops_block_1_and_saves_the_published_share():
    published = Schedule(num_blocks=12, theta_limit=0.5, temporal="constant", keep_first_block=True)
    assert published.keep_probabilities(0)[0] == 1.0
    assert 1 - published.expected_depth(0) / 12 == pytest.approx(0.2291666, abs=1e-6)


def test_uniform_depth_keeps_every_block_with_theta():
    schedule = Schedule(num_blocks=3, theta_limit=0.7, temporal="constant", depth="uniform")
    assert schedule.keep_probabilities(5) == pytest.approx((0.7, 0.7, 0.7))
    first_kept = Schedule(num_blocks=3, theta_limit=0.7, temporal="constant", depth="uniform", keep_first_block=True)
    assert first_kept.keep_probabilities(5) == pytest.approx((1.0, 0.7, 0.7))


def test_both_ends_can_be_kept():
    ends = {"keep_first_block": True, "keep_last_block": True}
    uniform = Schedule(num_blocks=4, theta_limit=0.4, temporal="constant", depth="uniform", **ends)
    assert uniform.keep_probabilities(0) == pytest.approx((1.0, 0.4, 0.4, 1.0))
    linear = Schedule(num_blocks=4, theta_limit=0.5, temporal="constant", **ends)
    assert linear.keep_probabilities(0) == pytest.approx((1.0, 0.875, 0.75, 1.0))


@pytest.mark.parametrize(
    ("blocks", "whole"), [(4, [1, 4]), (8, [1, 5, 8]), (12, [1, 5, 9, 12]), (24, [1, 5, 9, 13, 17, 21, 24])]
)
def test_every_fourth_block_can_be_kept(blocks, whole):
    options = {"temporal": "constant", "depth": "uniform", "keep_last_block": True, "keep_every": 4}
    kept = Schedule(num_blocks=blocks, theta_limit=0.3, **options).keep_probabilities(0)
    assert kept == pytest.approx([1.0 if block in whole else 0.3 for block in range(1, blocks + 1)])
    linear = Schedule(num_blocks=blocks, theta_limit=0.3, temporal="constant", keep_every=4)
    assert [block for block in range(1, blocks + 1) if linear.keep_probabilities(0)[block - 1] == 1.0] == [
        block for block in range(1, blocks + 1) if block % 4 == 1
    ]


@pytest.mark.parametrize(
    ("temporal", "thetas"),
    [
        ("constant", [0.4] * 6),
        ("linear", [1.0, 0.85, 0.7, 0.55, 0.4, 0.4]),
        ("growing", [0.4, 0.55, 0.7, 0.85, 1.0, 1.0]),
        ("exponential", [0.4 + 0.6 * math.exp(-0.1 * t) for t in range(6)]),
    ],
)
def test_theta_moves_between_a_dense_warm_up_and_a_dense_finish(temporal, thetas):
    schedule = Schedule(
        4, 0.4, gamma=0.1, temporal=temporal, warmup_steps=10, ramp_steps=4, finish_step=16, depth="uniform"
    )
    assert [schedule.theta(step) for step in (0, 9, 16, 10**6)] == [1.0] * 4
    assert [schedule.theta(step) for step in range(10, 16)] == pytest.approx(thetas)
    assert [schedule.is_dense(step) for step in (9, 10, 15, 16)] == [True, False, False, True]
    assert schedule.limit.theta(0) == schedule.limit.theta(20) == 0.4


def test_steps_until_a_linear_ramp_is_near_its_end():
    schedule = Schedule(num_blocks=6, theta_limit=0.5, temporal="linear", warmup_steps=10, ramp_steps=100)
    step = schedule.steps_until_theta_within(0.01)
    assert schedule.theta(step) <= 0.505 < schedule.theta(step - 1)
    assert Schedule(6, temporal="constant", warmup_steps=10).steps_until_theta_within(0.01) == 10
    assert Schedule(6, gamma=0.01, finish_step=20).steps_until_theta_within(0.01) is None
    assert Schedule(6, temporal="growing", ramp_steps=100).steps_until_theta_within(0.01) is None
    assert Schedule(6, 1.0, temporal="growing", ramp_steps=100).steps_until_theta_within(0.01) == 0


def test_steps_until_theta_is_constant():
    schedule = Schedule(num_blocks=6, theta_limit=0.5, gamma=0.01)
    step = schedule.steps_until_theta_within(0.01)
    assert schedule.theta(step) <= 0.505 < schedule.theta(step - 1)
