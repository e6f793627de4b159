"""The dropout mask that fused kernels draw from a counter: its rate, and the independence of its decisions."""

from __future__ import annotations

import itertools

import pytest
import torch

from bert_pld.kernels.dropout import CounterDropout, counter_keep_mask, dropped_levels, kept_scale


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.9])
def test_keep_rate_and_scale_match_the_probability(probability):
    keep = counter_keep_mask(CounterDropout(probability, seed=11, site=3), 1000, 1000).double()
    sigma = (probability * (1 - probability) / keep.numel()) ** 0.5
    assert keep.mean().item() == pytest.approx(1 - probability, abs=5 * sigma)
    dropped = dropped_levels(probability)
    assert kept_scale(dropped) * (1 - dropped / 2**16) == 1.0
    assert abs(dropped / 2**16 - probability) <= 2**-17


def test_decisions_that_share_a_counter_are_independent():
    keep = counter_keep_mask(CounterDropout(0.3, seed=1), 1000, 1024).view(-1, 8).double()
    off_diagonal = torch.corrcoef(keep.T) - torch.eye(8)
    assert off_diagonal.abs().max() < 5 / keep.shape[0] ** 0.5


def test_rows_columns_sites_and_seeds_are_independent():
    def mask(**key):
        return counter_keep_mask(CounterDropout(0.3, **key), 500, 1000).double()

    one = mask(seed=5, site=0)
    others = {
        "next site": mask(seed=5, site=1),
        "next seed": mask(seed=6, site=0),
        "next high word": mask(seed=5 + (1 << 31), site=0),
        "next row": one.roll(1, 0),
        "next column": one.roll(1, 1),
        "next counter": one.roll(8, 1),
    }
    for (a, first), (b, second) in itertools.combinations({"one": one, **others}.items(), 2):
        correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item()
        assert abs(correlation) < 5 / one.numel() ** 0.5, (a, b)


def test_mask_of_a_row_does_not_depend_on_the_number_of_rows():
    dropout = CounterDropout(0.2, seed=9, site=1)
    assert torch.equal(counter_keep_mask(dropout, 5, 40), counter_keep_mask(dropout, 9, 48)[:5, :40])


def test_no_dropout_keeps_everything():
    assert counter_keep_mask(CounterDropout(0.0, seed=3), 4, 9).all()
