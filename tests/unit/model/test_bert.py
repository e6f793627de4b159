"""The encoder under gates: cost of dropped blocks, recomputation by activation checkpointing, evaluation."""

from __future__ import annotations

import collections

import pytest
import torch
from recorded_operators import RecordOperators
from tiny_model import drawn_gates, fixed_gates, gradients, make_batch, make_model

from bert_pld.pld import BlockGate


def operators_of_a_step(model, gates):
    with RecordOperators() as recorded:
        model(**make_batch(), gates=gates)["loss"].backward()
    model.zero_grad(set_to_none=True)
    return collections.Counter(str(operator) for operator, *_ in recorded.calls)


@pytest.mark.parametrize("normalization", ["pre", "post"])
def test_dropped_blocks_run_no_operator_forward_or_backward(normalization):
    deep = make_model(num_layers=4, normalization=normalization)
    shallow = make_model(num_layers=2, normalization=normalization)
    with_drops = operators_of_a_step(deep, fixed_gates([1, 0, 0, 1]))
    assert with_drops == operators_of_a_step(shallow, fixed_gates([1, 1]))
    assert with_drops != operators_of_a_step(deep, fixed_gates([1, 1, 0, 1]))
    assert sum(with_drops.values()) > 50


@pytest.mark.parametrize("granularity", ["batch", "sample", "token"])
@pytest.mark.parametrize("normalization", ["pre", "post"])
def test_activation_checkpointing_recomputes_under_the_same_gates_and_masks(granularity, normalization):
    for step in range(4):
        results = []
        for checkpointing in (False, True):
            model = make_model(activation_checkpointing=checkpointing, normalization=normalization, hidden_dropout=0.1)
            gates = drawn_gates(granularity, step)
            torch.manual_seed(step)
            results.append(gradients(model, gates))
        (loss, plain), (loss_again, recomputed) = results
        assert loss == loss_again
        assert plain.keys() == recomputed.keys()
        assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


@pytest.mark.parametrize("normalization", ["pre", "post"])
def test_kept_blocks_with_scale_one_equal_the_ungated_network(normalization):
    model = make_model(normalization=normalization)
    loss, plain = gradients(model, None)
    gated_loss, gated = gradients(model, fixed_gates([1, 1, 1, 1]))
    assert loss == gated_loss
    assert all(torch.equal(plain[name], gated[name]) for name in plain)


def test_rows_that_a_block_drops_skip_the_block():
    model = make_model(num_layers=1).eval()
    batch = make_batch()
    inputs = (batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    gate = BlockGate(keep=True, scale=1.0, keep_probability=1.0, rows=torch.tensor([0, 2]))
    with torch.no_grad():
        some = model.encoder(*inputs, [gate])
        every = model.encoder(*inputs, None)
        none = model.encoder(*inputs, fixed_gates([0]))
    assert torch.allclose(some[[0, 2]], every[[0, 2]], atol=1e-6)
    assert torch.equal(some[[1, 3]], none[[1, 3]])


def test_scale_multiplies_both_sub_layers():
    """x' = x + s·A(LN x), x'' = x' + s·F(LN x'): doubled projections at half the scale give the same result."""
    model = make_model(num_layers=1).eval()
    batch = make_batch()
    inputs = (batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    with torch.no_grad():
        expected = model.encoder(*inputs, fixed_gates([1], scale=2.0))
        for name, parameter in model.encoder.blocks[0].named_parameters():
            if name.startswith(("attention_output", "ffn_down")):
                parameter.mul_(2.0)
        assert torch.allclose(model.encoder(*inputs, None), expected, atol=1e-5)


def test_padding_does_not_change_the_loss():
    model = make_model().eval()
    batch = make_batch()
    garbage = torch.where(batch["attention_mask"], batch["input_ids"], torch.tensor(63))
    loss = model(**batch)["loss"].item()
    assert model(**{**batch, "input_ids": garbage})["loss"].item() == pytest.approx(loss, rel=1e-6)


def test_no_masked_position_gives_zero_loss_and_no_nan():
    model = make_model()
    empty = torch.zeros(0, dtype=torch.int64)
    batch = {**make_batch(), "masked_positions": empty, "masked_labels": empty}
    outputs = model(**batch)
    assert outputs["mlm_loss"].item() == 0.0
    assert torch.isfinite(outputs["loss"])


def test_mlm_loss_is_the_mean_over_masked_positions_unless_a_denominator_is_given():
    model = make_model().eval()
    mean = model(**make_batch())["mlm_loss"].item()
    assert model(**make_batch(), mlm_denominator=1.0)["mlm_loss"].item() == pytest.approx(6 * mean, rel=1e-6)
