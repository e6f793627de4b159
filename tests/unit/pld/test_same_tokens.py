"""`same_tokens`: all blocks draw from one order of a sequence's tokens, and neighbours gather them once."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from modern_model import LENGTHS as MODERN_LENGTHS
from modern_model import SEQ as MODERN_SEQ
from modern_model import make_modern, modern_batch
from recorded_operators import RecordOperators
from tiny_model import LENGTHS, SEQ, make_batch, make_model

import bert_pld
from bert_pld.model import use_backend
from bert_pld.pld import BlockGate, Schedule, draw_gates, run_gated
from bert_pld.pld.subsets import draw_token_subsets

LAYERS = 5
INNER = Schedule(LAYERS, 0.5, temporal="constant", depth="uniform", keep_first_block=True, keep_last_block=True)
MODELS = {
    "pre": lambda **options: make_model(num_layers=LAYERS, normalization="pre", **options),
    "post": lambda **options: make_model(num_layers=LAYERS, normalization="post", **options),
    "modernbert": lambda **options: make_modern(num_layers=LAYERS, **options).train(),
}


def drawn(lengths=LENGTHS, padded_length=SEQ, schedule=INNER, same_tokens=True, **options):
    return draw_gates(
        schedule, granularity="token", seed=1, step=3, rows=len(lengths), lengths=lengths, padded_length=padded_length,
        same_tokens=same_tokens, **options,
    )  # fmt: skip


def gates_and_batch(name, padded):
    if name == "modernbert":
        lengths, length, batch = MODERN_LENGTHS, MODERN_SEQ, modern_batch(padded=padded)
    else:
        lengths, length, batch = LENGTHS, SEQ, make_batch(padded=padded)
    return drawn(lengths if padded else np.full_like(lengths, length), length), batch


def with_copied_subsets(gates):
    """The same gates, but no two blocks have one subset in common, so that each block gathers its tokens itself."""
    return [gate if gate.tokens is None else dataclasses.replace(gate, tokens=dataclasses.replace(gate.tokens))
            for gate in gates]  # fmt: skip


def gradients(model, gates, batch):
    torch.manual_seed(2)
    loss = model(**batch, gates=gates)["loss"]
    loss.backward()
    return loss.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def test_blocks_of_equal_share_have_one_subset_which_is_that_of_block_0():
    masked = torch.tensor([1, 3, 18, 34, 50, 60])
    gates = drawn(masked_positions=masked, near_masked=1)
    assert gates[0].tokens is gates[4].tokens is None
    assert gates[1].tokens is gates[2].tokens is gates[3].tokens
    everywhere = dataclasses.replace(INNER, keep_first_block=False)
    alone = drawn(schedule=everywhere, same_tokens=False, masked_positions=masked, near_masked=1)
    assert torch.equal(gates[1].tokens.kept, alone[0].tokens.kept)
    assert not torch.equal(gates[1].tokens.kept, alone[1].tokens.kept)
    assert gates.kept_blocks == drawn(same_tokens=False).kept_blocks


def test_smaller_subsets_are_parts_of_larger_ones():
    linear = drawn(schedule=Schedule(LAYERS, 0.3, temporal="constant"))
    kept = [gate.tokens.kept for gate in linear]
    counts = [int(one.sum()) for one in kept]
    assert counts == [46, 39, 30, 23, 17]
    assert all(not (smaller & ~larger).any() for larger, smaller in itertools.pairwise(kept))


def test_rows_and_steps_draw_apart():
    """Two independent subsets of 32 of 64 tokens share 16 of them, give or take 3 deviations of 2.02."""
    kept = {}
    for step in (0, 1):
        subsets = draw_token_subsets(
            [0.5] * 2, seed=0, step=step, micro_step=0, first_row=0, lengths=np.array([64] * 2), padded_length=64,
            device="cpu", same=True,
        )  # fmt: skip
        kept[step] = subsets[0].kept
        assert subsets[1] is subsets[0]
    for one, other in ((kept[0][0], kept[0][1]), (kept[0][0], kept[1][0])):
        assert abs(int((one & other).sum()) - 16) <= 6


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", MODELS)
def test_blocks_that_gather_together_give_the_bits_of_blocks_that_gather_apart(name, checkpointing, padded):
    gates, batch = gates_and_batch(name, padded)
    results = []
    for each in (gates, with_copied_subsets(gates)):
        model = MODELS[name](activation_checkpointing=checkpointing, hidden_dropout=0.1)
        results.append(gradients(model, each, batch))
    (loss, together), (loss_apart, apart) = results
    assert torch.equal(loss, loss_apart)
    assert together.keys() == apart.keys()
    assert all(torch.equal(together[key], apart[key]) for key in apart)


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_put_back_once_for_all_blocks_on_the_same_tokens(name):
    gates, batch = gates_and_batch(name, padded=False)
    for each, times in ((gates, 1), (with_copied_subsets(gates), 3)):
        model = MODELS[name]()
        with RecordOperators() as recorded:
            gradients(model, each, batch)
        names = [str(function) for function, *_ in recorded.calls]
        # Forward puts the updated rows back, and backward their gradients.
        assert sum("index_copy" in one for one in names) == 2 * times


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted kernels only")
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_fused_equals_eager_on_the_same_tokens(name, padded):
    gates, batch = gates_and_batch(name, padded)
    eager, fused = MODELS[name](), MODELS[name]()
    use_backend(fused, "triton", "cpu")
    loss, expected = gradients(eager, gates, batch)
    fused_loss, actual = gradients(fused, gates, batch)
    assert fused_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert actual.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(actual[key], gradient, atol=2e-4 * gradient.abs().max().item() + 1e-7, rtol=0)


def test_merged_blocks_of_any_model_equal_blocks_one_by_one():
    gates = [*drawn()[:3], BlockGate(keep=False, scale=1.0, keep_probability=0.5), *drawn()[3:]]
    factors = [1.1, 1.2, 1.3, 1.4, 1.5, 1.6]

    def block(factor):
        return lambda x, mask, scale: x + scale * torch.tanh(factor * x + (x * mask[..., None]).mean(1, keepdim=True))

    hidden = torch.randn(*LENGTHS.shape, SEQ, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(SEQ) < torch.from_numpy(LENGTHS)[:, None]
    expected = found = hidden
    for factor, gate in zip(factors, gates, strict=True):
        expected = run_gated(block(factor), expected, gate, mask)
    merged = list(bert_pld.merge_same_tokens(zip(map(block, factors), gates, strict=True)))
    for run, gate in merged:
        found = run_gated(run, found, gate, mask)
    assert [gate for _, gate in merged] == [gates[0], gates[1], gates[3], gates[4], gates[5]]
    assert torch.equal(found, expected)
