"""Gates: unbiased, the same on every rank, and free of compute for dropped blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bert_pld.pld.gates import BlockGate, draw_gates, run_gated
from bert_pld.pld.schedule import Schedule

LIMIT = Schedule(num_blocks=12, theta_limit=0.5, temporal="constant")
DRAWS = 10_000


def draw(granularity, step, *, micro_step=0, rows=16, seed=0, first_row=0, schedule=LIMIT):
    return draw_gates(
        schedule, granularity=granularity, seed=seed, step=step, micro_step=micro_step, rows=rows, first_row=first_row
    )


@pytest.fixture(scope="module")
def draws():
    """Draws at batch granularity of seed 0, which several tests examine."""
    return [draw("batch", step) for step in range(DRAWS)]


@pytest.fixture(scope="module")
def kept(draws):
    """Which blocks each draw keeps: [DRAWS, L]."""
    return kept_of(draws)


def kept_of(draws):
    return np.array([[gate.keep for gate in gates] for gates in draws], dtype=float)


def gate_factors(gates, rows):
    """gate / p per block and row, as the model applies it: [L, rows]."""
    factors = np.zeros((len(gates), rows))
    for index, gate in enumerate(gates):
        if gate.keep:
            factors[index, slice(None) if gate.rows is None else gate.rows.numpy()] = gate.scale
    return factors


def test_batch_gates_over_p_have_mean_one_in_every_block(kept):
    """The published code sampled with p_l and scaled with the next block's: a bias of 4 to 8 %, at least 1.8 bounds."""
    p = np.array(LIMIT.keep_probabilities(0))
    mean = (kept / p).mean(0)
    five_sigma = 5 * np.sqrt((1 - p) / p / DRAWS)
    assert (np.abs(mean - 1) < five_sigma).all(), mean
    scales = [gate.scale for gate in draw("batch", 0)]
    assert scales == pytest.approx((1 / p).tolist())
    off_by_one = kept[:, :-1].mean(0) / p[1:]
    assert (np.abs(off_by_one - 1) > five_sigma[:-1]).all(), "the test would not detect the published bug"


def test_sample_gates_over_p_have_mean_one_in_every_block_and_row():
    rows, draws = 6, 1_500
    mean = np.mean([gate_factors(draw("sample", step, rows=rows), rows) for step in range(draws)], axis=0)
    p = np.array(LIMIT.keep_probabilities(0))[:, None]
    assert (np.abs(mean - 1) < 5 * np.sqrt((1 - p) / p / draws)).all(), mean


def test_mean_kept_depth_is_three_l_minus_one_over_four(draws):
    depth = np.array([gates.kept_blocks for gates in draws])
    assert depth.mean() == pytest.approx(8.75, abs=5 * depth.std() / np.sqrt(DRAWS))
    assert np.mean([draw("sample", step).kept_blocks for step in range(400)]) == pytest.approx(8.75, abs=0.02)


def test_gates_of_different_blocks_steps_and_seeds_are_independent(kept):
    between_blocks = np.corrcoef(kept.T) - np.eye(12)
    assert np.abs(between_blocks).max() < 5 / np.sqrt(DRAWS)
    between_steps = [np.corrcoef(kept[:-1, block], kept[1:, block])[0, 1] for block in range(12)]
    assert np.abs(between_steps).max() < 5 / np.sqrt(DRAWS)
    other = kept_of(draw("batch", step, seed=1) for step in range(DRAWS))
    between_seeds = [np.corrcoef(kept[:, block], other[:, block])[0, 1] for block in range(12)]
    assert np.abs(between_seeds).max() < 5 / np.sqrt(DRAWS)


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_gates_depend_on_their_key_only_and_leave_global_generators_alone(granularity):
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (draw(granularity, 7, micro_step=m) for m in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert (gate_factors(first, 16) == gate_factors(again, 16)).all()
    assert (gate_factors(first, 16) != gate_factors(other, 16)).any()


def test_ranks_draw_the_same_blocks_and_row_counts_but_different_rows():
    first, second = (draw("batch", 3, first_row=row) for row in (0, 16))
    assert [gate.keep for gate in first] == [gate.keep for gate in second]
    first, second = (draw("sample", 3, first_row=row) for row in (0, 16))
    counts = [[16 if gate.rows is None else len(gate.rows) for gate in gates] for gates in (first, second)]
    assert counts[0] == counts[1]
    assert (gate_factors(first, 16) != gate_factors(second, 16)).any()


def test_run_gated_updates_the_kept_rows_only():
    hidden = torch.arange(12.0).reshape(4, 3)
    extra = torch.tensor([[10.0], [20.0], [30.0], [40.0]])
    gate = BlockGate(keep=True, scale=2.0, keep_probability=0.5, rows=torch.tensor([1, 3]))
    out = run_gated(lambda x, e, scale: x + scale * e, hidden, gate, extra)
    assert torch.equal(out, hidden + torch.tensor([[0.0], [40.0], [0.0], [80.0]]))


def test_evaluation_runs_every_block_unscaled():
    scales = []
    run_gated(lambda x, scale: scales.append(scale) or x, torch.zeros(2, 3), None)
    assert scales == [1.0]


def test_dropped_block_runs_on_an_empty_batch_only_where_it_needs_zero_gradients():
    calls = []

    def block(hidden, scale):
        calls.append(hidden.shape[0])
        return hidden * scale

    hidden = torch.ones(4, 3, requires_grad=True)
    dropped = BlockGate(keep=False, scale=2.0, keep_probability=0.5)
    assert run_gated(block, hidden, dropped) is hidden
    assert calls == []
    with_gradients = BlockGate(keep=False, scale=2.0, keep_probability=0.5, zero_gradient_when_dropped=True)
    assert torch.equal(run_gated(block, hidden, with_gradients, accepts_no_rows=True), hidden)
    assert torch.equal(run_gated(block, hidden, with_gradients), hidden)
    assert calls == [0, 1]


@pytest.mark.parametrize("size", [1.0, 6e4])
def test_dropped_block_that_needs_a_row_gets_zero_gradients(size):
    """Also in fp16, where the sum of a row's values can overflow."""
    inner = torch.nn.Linear(6, 6).half()

    def block(hidden, scale):
        heads = inner(hidden).view(hidden.shape[0], hidden.shape[1], 2, -1)  # impossible on no rows
        return hidden + scale * heads.flatten(2)

    hidden = torch.full((4, 3, 6), size, dtype=torch.float16, requires_grad=True)
    gate = BlockGate(keep=False, scale=1e-3, keep_probability=0.5, zero_gradient_when_dropped=True)
    output = run_gated(block, hidden, gate)
    assert torch.equal(output, hidden)
    output.backward(torch.ones_like(output))
    assert torch.equal(hidden.grad, torch.ones_like(hidden))
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in inner.parameters())
