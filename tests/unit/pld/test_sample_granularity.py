"""Sample granularity: unbiased over any number of blocks, constant work per step, and a lower gradient variance."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch

from bert_pld.config import load_config
from bert_pld.model import BertForPreTraining
from bert_pld.pld.gates import draw_gates, run_gated
from bert_pld.pld.schedule import Schedule

TOY = Schedule(num_blocks=4, theta_limit=0.5, temporal="constant")


def draw(granularity, step, rows, schedule=TOY):
    return draw_gates(schedule, granularity=granularity, seed=0, step=step, rows=rows)


class LinearToy:
    """x_l = x_{l−1} + s · x_{l−1} W_l: the output sums the products of the scaled gates over all sets of blocks.

    Inputs and weights are positive, so that a bias of the products adds up instead of cancelling out.
    """

    def __init__(self, rows, width=3):
        generator = torch.Generator().manual_seed(0)
        blocks = TOY.num_blocks
        self.inputs = torch.rand(rows, width, generator=generator, dtype=torch.float64, requires_grad=True)
        self.weights = torch.rand(blocks, width, width, generator=generator, dtype=torch.float64, requires_grad=True)
        self.upstream = torch.rand(rows, width, generator=generator, dtype=torch.float64)

    def output_and_gradients(self, gates):
        """Return the output and, for a fixed upstream gradient, the gradients of inputs and weights, in one vector."""
        hidden = self.inputs
        for index in range(TOY.num_blocks):
            weight = self.weights[index]
            hidden = run_gated(
                lambda x, scale, weight=weight: x + scale * (x @ weight),
                hidden,
                None if gates is None else gates[index],
            )
        gradients = torch.autograd.grad(
            hidden, [self.inputs, self.weights], self.upstream, allow_unused=True, materialize_grads=True
        )
        return torch.cat([tensor.detach().flatten() for tensor in (hidden, *gradients)]).numpy()

    def sigmas_from_the_ungated_network(self, all_gates):
        """Return each number's deviation of the mean over the draws, in standard errors."""
        drawn = np.array([self.output_and_gradients(gates) for gates in all_gates])
        standard_error = drawn.std(0, ddof=1) / np.sqrt(len(drawn))
        return (drawn.mean(0) - self.output_and_gradients(None)) / standard_error


@functools.cache
def draws_of_two_rows():
    """As many as detect the bias of unscaled coupled counts."""
    return [draw("sample", step, 2) for step in range(3_000)]


@pytest.mark.parametrize(("granularity", "rows"), [("batch", 3), ("sample", 3), ("sample", 2), ("sample", 1)])
def test_mean_output_and_gradients_over_gate_draws_equal_the_ungated_network_s(granularity, rows):
    if (granularity, rows) == ("sample", 2):
        all_gates = draws_of_two_rows()
    else:
        all_gates = [draw(granularity, step, rows) for step in range(1_000)]
    sigmas = LinearToy(rows).sigmas_from_the_ungated_network(all_gates)
    assert np.isfinite(sigmas).all()
    assert np.abs(sigmas).max() < 5, sigmas


def test_linear_toy_detects_the_bias_of_unscaled_coupled_counts():
    """Two rows scaled with 1 / p_l: the gate of each block has mean 1, but the product of all four has mean 0.914."""
    all_gates = [
        [dataclasses.replace(gate, scale=1 / gate.keep_probability) for gate in gates] for gates in draws_of_two_rows()
    ]
    assert LinearToy(2).sigmas_from_the_ungated_network(all_gates).min() < -5


@pytest.mark.parametrize("rows", [1, 2, 4, 16])
def test_product_of_scaled_gates_over_blocks_has_mean_one(rows):
    """Checked for each pair of blocks and for all blocks together."""
    schedule = Schedule(num_blocks=8, theta_limit=0.5, temporal="constant")
    draws = 1_000
    factors = np.zeros((draws, 8, rows))
    for step in range(draws):
        for index, gate in enumerate(draw("sample", step, rows, schedule)):
            if gate.keep:
                factors[step, index, slice(None) if gate.rows is None else gate.rows.numpy()] = gate.scale
    for blocks in (*itertools.combinations(range(8), 2), range(8)):
        product = factors[:, list(blocks)].prod(axis=1).mean(axis=1)
        assert abs(product.mean() - 1) < 5 * product.std() / np.sqrt(draws) + 1e-12, tuple(blocks)


@pytest.mark.parametrize("rows", [2, 3, 5, 16, 33])
@pytest.mark.parametrize("theta", [0.5, 0.83])
def test_total_rows_of_a_micro_batch_vary_by_at_most_one(rows, theta):
    schedule = Schedule(num_blocks=12, theta_limit=theta, temporal="constant")
    totals = []
    for step in range(300):
        gates = draw("sample", step, rows, schedule)
        counts = [rows if gate.rows is None else len(gate.rows) for gate in gates]
        for count, p in zip(counts, schedule.keep_probabilities(0), strict=True):
            assert abs(count - rows * p) < 1
        assert gates.kept_blocks * rows == pytest.approx(sum(counts))
        totals.append(sum(counts))
    expected = rows * schedule.expected_depth(0)
    assert set(totals) <= {math.floor(expected + 1e-9), math.ceil(expected - 1e-9)}
    assert np.mean(totals) == pytest.approx(expected, abs=5 * 0.5 / np.sqrt(len(totals)))


def test_blocks_with_less_than_one_expected_row_leave_the_sum_of_the_others_constant():
    schedule = Schedule(num_blocks=10, theta_limit=0.1, temporal="constant")
    p = np.array(schedule.keep_probabilities(0))
    draws, rows = 2_000, 4
    gates = [draw("sample", step, rows, schedule) for step in range(draws)]
    counts = np.array([[rows if gate.rows is None else len(gate.rows) for gate in one] for one in gates])
    rare = rows * p < 1
    assert rare.tolist() == [False] * 8 + [True] * 2
    assert (np.abs(counts.mean(0) - rows * p) < 5 * 0.5 / np.sqrt(draws)).all()
    assert counts[:, rare].max() == 1
    assert np.ptp(counts[:, ~rare].sum(1)) <= 1
    assert counts[:, ~rare].min() == 1


def test_gradient_variance_is_lower_than_at_batch_granularity_with_equal_expected_compute():
    """Few labels give the rows' gradients a common part; with purely random rows there would be no difference."""
    rows, seq, draws = 8, 16, 60
    model_config = load_config(
        {
            "model": {
                "preset": None, "num_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64,
                "vocab_size": 64, "hidden_dropout": 0.0, "attention_dropout": 0.0, "next_sentence_prediction": False,
            },
            "data": {"seq_length": seq},
        }
    ).model  # fmt: skip
    torch.manual_seed(0)
    model = BertForPreTraining(model_config)
    ids = torch.randint(1, 64, (rows, seq))
    positions = torch.arange(0, rows * seq, 2)
    labels = ids.flatten()[positions] % 4

    def gradient(gates):
        model.zero_grad(set_to_none=True)
        model(ids, torch.zeros_like(ids), None, positions, labels, gates=gates)["loss"].backward()
        zero_if_dropped = (torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())
        return torch.cat([grad.flatten() for grad in zero_if_dropped])

    variance, depth = {}, {}
    for granularity in ("batch", "sample"):
        all_gates = [draw(granularity, step, rows) for step in range(draws)]
        gradients = torch.stack([gradient(gates) for gates in all_gates])
        variance[granularity] = gradients.var(dim=0).sum().item() / gradients.mean(0).square().sum().item()
        depth[granularity] = np.array([gates.kept_blocks for gates in all_gates])
    assert depth["batch"].mean() == pytest.approx(2.75, abs=5 * depth["batch"].std() / np.sqrt(draws))
    assert depth["sample"].mean() == pytest.approx(2.75, abs=1 / rows)
    assert np.ptp(depth["sample"]) <= 1 / rows + 1e-12
    assert variance["sample"] > 0
    assert variance["batch"] > 5 * variance["sample"], variance
