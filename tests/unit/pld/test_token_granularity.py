"""Token granularity: uniform subsets of exact size, independent of each other, and the compute of shorter sequences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from recorded_operators import RecordOperators
from scipy import stats
from tiny_model import LENGTHS, ROWS, SEQ, drawn_gates, make_batch, make_model

from bert_pld.cost.flops import ModelFlops
from bert_pld.cost.work import BlockWork
from bert_pld.pld.gates import draw_gates, run_gated
from bert_pld.pld.schedule import Schedule
from bert_pld.pld.subsets import draw_token_subsets, kept_counts
from bert_pld.rng import Stream, random_words

HALF = Schedule(3, 0.5, temporal="constant", depth="uniform")


def draw(share=0.5, *, blocks=1, step=0, micro_step=0, first_row=0, lengths=(8,) * 4, padded_length=8, seed=0):
    """bool [blocks, rows, padded_length]: the kept tokens."""
    subsets = draw_token_subsets(
        [share] * blocks,
        seed=seed,
        step=step,
        micro_step=micro_step,
        first_row=first_row,
        lengths=np.array(lengths),
        padded_length=padded_length,
        device="cpu",
    )
    return np.stack([subset.kept.numpy() for subset in subsets])


@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.94])
def test_each_sequence_keeps_exactly_its_share_of_tokens_and_no_padding(share):
    lengths = np.arange(1, 41)
    subset = draw_token_subsets(
        [share], seed=0, step=0, micro_step=0, first_row=0, lengths=lengths, padded_length=40, device="cpu"
    )[0]
    kept = subset.kept.numpy()
    assert (kept.sum(1) == subset.counts).all()
    assert (subset.counts == np.maximum(np.floor(share * lengths + 0.5), 1)).all()
    assert not kept[np.arange(40) >= lengths[:, None]].any()


def test_full_share_keeps_all_tokens_without_a_subset():
    gates = draw_gates(
        dataclasses.replace(HALF, keep_first_block=True, keep_last_block=True),
        granularity="token", seed=0, step=0, rows=2, lengths=np.array([8, 8]), padded_length=8,
    )  # fmt: skip
    assert [gate.tokens is None for gate in gates] == [True, False, True]
    assert gates.kept_blocks == 2.5
    assert all(gate.keep and gate.scale == 1.0 for gate in gates)


def test_subsets_are_uniform_over_all_subsets_of_their_size():
    """All 70 subsets of 4 of 8 tokens: χ² over 40,000 draws of four rows."""
    codes = np.concatenate([draw(step=step, lengths=(8,) * 100)[0] @ (1 << np.arange(8)) for step in range(400)])
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == 70
    assert stats.chisquare(counts).pvalue > 1e-3


def test_subsets_of_different_blocks_rows_steps_micro_steps_and_seeds_are_independent():
    """Two independent subsets of 4 of 8 share a hypergeometric number of tokens, with mean 2."""
    first = np.concatenate([draw(blocks=2, step=step, lengths=(8,) * 50) for step in range(200)], axis=1)
    others = {
        "block": first[1],
        "row": np.roll(first[0], 1, axis=0),
        "step": np.roll(first[0], 50, axis=0),
        "micro-step": np.concatenate([draw(step=s, micro_step=1, lengths=(8,) * 50)[0] for s in range(200)]),
        "seed": np.concatenate([draw(step=s, seed=1, lengths=(8,) * 50)[0] for s in range(200)]),
    }
    expected = stats.hypergeom(8, 4, 4).pmf(np.arange(5)) * len(first[0])
    for name, other in others.items():
        shared = np.bincount((first[0] & other).sum(1), minlength=5)
        assert stats.chisquare(shared, expected).pvalue > 1e-3, name


def test_masked_tokens_are_kept_first_and_the_rest_uniformly():
    """Of 8 tokens of which 2 are masked, each of the C(6, 2) pairs of others is as likely; 6 masked: all C(6, 4)."""
    for masked, others in (([1, 6], 15), ([0, 1, 2, 3, 4, 7], 15)):
        kept = []
        for step in range(150):
            subset = draw_token_subsets(
                [0.5], seed=0, step=step, micro_step=0, first_row=0, lengths=np.array([8] * 50), padded_length=8,
                device="cpu", preferred=torch.tensor([8 * row + place for row in range(50) for place in masked]),
            )[0]  # fmt: skip
            kept.append(subset.kept.numpy())
        kept = np.concatenate(kept)
        assert (kept.sum(1) == 4).all()
        assert (kept[:, masked].sum(1) == min(len(masked), 4)).all()
        _, counts = np.unique(kept @ (1 << np.arange(8)), return_counts=True)
        assert len(counts) == others
        assert stats.chisquare(counts).pvalue > 1e-3


def test_tokens_near_a_masked_one_come_after_the_masked_and_before_the_rest():
    """Tokens 1 and 6 of 8 are masked and 4 are kept: of 0, 2, 5 and 7, each of the 6 pairs is as likely. Where 6 are
    kept, all of these are."""

    def draw_near(share, near, masked):
        subsets = [
            draw_token_subsets(
                [share], seed=0, step=step, micro_step=0, first_row=0, lengths=np.array([8] * 50), padded_length=8,
                device="cpu", preferred=torch.tensor([8 * row + place for row in range(50) for place in masked]),
                near=near,
            )[0]
            for step in range(60)
        ]  # fmt: skip
        return np.concatenate([subset.kept.numpy() for subset in subsets])

    kept = draw_near(0.5, 1, (1, 6))
    assert (kept.sum(1) == 4).all()
    assert kept[:, [1, 6]].all()
    assert not kept[:, [3, 4]].any()
    _, counts = np.unique(kept @ (1 << np.arange(8)), return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3
    assert (draw_near(0.75, 1, (1, 6)) == [1, 1, 1, 0, 0, 1, 1, 1]).all()
    assert (draw_near(0.5, 3, (0,)) == [1, 1, 1, 1, 0, 0, 0, 0]).all()
    for whole_row in (7, 100):
        assert (draw_near(0.5, whole_row, (0,)) == draw_near(0.5, 0, (0,))).all()


def test_masked_padding_is_never_kept():
    subset = draw_token_subsets(
        [0.5], seed=0, step=0, micro_step=0, first_row=0, lengths=np.array([4]), padded_length=8, device="cpu",
        preferred=torch.tensor([2, 6, 7]), near=1,
    )[0]  # fmt: skip
    assert subset.kept[0, 2]
    assert not subset.kept[0, 4:].any()


def test_priorities_are_the_counter_s_words_and_no_global_generator_is_used():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    kept = draw(step=11, micro_step=2, first_row=5, seed=7, blocks=2, lengths=(10,) * 3, padded_length=10)
    assert torch.equal(torch.get_rng_state(), before)
    counter = np.arange(3), np.arange(5, 8)[:, None], 11, np.array([2 << 16, (2 << 16) + 1])[:, None, None]
    words = np.stack(random_words(7, Stream.GATE_TOKENS, *counter), axis=-1).reshape(2, 3, 12)[..., :10]
    ranks = words.argsort(-1).argsort(-1)
    assert (kept == (ranks < 5)).all()


def test_ranks_draw_what_one_rank_would_draw_for_all_rows():
    whole = draw(blocks=3, step=4, lengths=(8, 5, 7, 8))
    parts = [draw(blocks=3, step=4, lengths=lengths, first_row=row) for row, lengths in ((0, (8, 5)), (2, (7, 8)))]
    assert (np.concatenate(parts, axis=1) == whole).all()


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
def test_run_gated_runs_the_block_on_the_kept_tokens_of_each_sequence(padded):
    gate = drawn_gates("token", padded=padded)[2]
    lengths = LENGTHS if padded else np.full(ROWS, SEQ)
    hidden = torch.randn(ROWS, SEQ, 3, requires_grad=True)
    mask = torch.arange(SEQ) < torch.from_numpy(lengths)[:, None]

    def block(x, mask, scale):
        """Depends on all tokens of a sequence, as attention does."""
        mean = (x * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        return x + scale * torch.tanh(x * 2 + mean)

    out = run_gated(block, hidden, gate, mask)
    expected = []
    for row, count in enumerate(kept_counts(0.625, lengths)):
        kept = gate.tokens.kept[row]
        assert kept.sum() == count
        one = hidden[row].clone()
        one[kept] = block(hidden[row][kept][None], torch.ones(1, int(count), dtype=torch.bool), scale=1.0)[0]
        expected.append(one)
    expected = torch.stack(expected)
    assert torch.allclose(out[mask], expected[mask], atol=1e-6)
    upstream = torch.randn_like(out) * mask[..., None]
    (actual,) = torch.autograd.grad(out, hidden, upstream)
    (gradient,) = torch.autograd.grad(expected, hidden, upstream)
    assert torch.allclose(actual, gradient, atol=1e-6)


def test_tokens_that_a_block_does_not_see_change_only_where_they_are_kept():
    model = make_model(num_layers=1).eval()
    batch = make_batch(padded=False)
    inputs = (batch["input_ids"], batch["token_type_ids"], None)
    gates = drawn_gates("token", num_layers=1, padded=False)
    kept = gates[0].tokens.kept
    with torch.no_grad():
        embedded = model.encoder.final_norm(model.encoder.embeddings(*inputs[:2]))
        some, every = model.encoder(*inputs, gates), model.encoder(*inputs, None)
    assert torch.equal(some[~kept], embedded[~kept])
    assert (some[kept] != embedded[kept]).any(-1).all()
    assert (some[kept] != every[kept]).any()


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
def test_counted_flops_are_those_of_the_kept_tokens(padded):
    model, gates = ModelFlops(make_model(num_layers=4).config, SEQ), drawn_gates("token", padded=padded)
    counts = [gate.tokens.counts for gate in gates]
    lengths = LENGTHS if padded else np.full(ROWS, SEQ)
    assert model.gated_blocks(lengths, gates) == sum(model.block(count) for count in counts)
    # Without fused kernels every sequence has as many tokens as the one that keeps most.
    widest = [np.full(ROWS, count.max()) for count in counts]
    assert model.gated_blocks(np.full(ROWS, SEQ), gates, False) == sum(model.block(count) for count in widest)
    if not padded:
        shares = [count[0] / SEQ for count in counts]
        mean = model.per_sequence(BlockWork.of(shares, "token", SEQ))
        assert model.gated_blocks(lengths, gates) == pytest.approx(ROWS * (mean - model.heads_per_sequence))


def test_matrix_products_and_attention_are_those_of_the_shorter_sequence():
    """In forward and backward; the kept half of 16 tokens costs what a sequence of 8 tokens costs."""
    model = make_model(num_layers=3)
    ids, types = (make_batch(padded=False)[name] for name in ("input_ids", "token_type_ids"))
    gates = draw_gates(
        HALF, granularity="token", seed=0, step=0, rows=ROWS, lengths=np.full(ROWS, SEQ), padded_length=SEQ
    )

    def shapes(*inputs):
        with RecordOperators() as recorded:
            model.encoder(*inputs).square().sum().backward()
        return [
            (str(function), [tuple(tensor.shape) for tensor in arguments if isinstance(tensor, torch.Tensor)])
            for function, arguments, _ in recorded.calls
            if "mm" in str(function) or "attention" in str(function)
        ]

    half = shapes(ids, types, None, gates)
    assert half == shapes(ids[:, :8], types[:, :8], None, None)
    assert half != shapes(ids, types, None, None)
    # A block has four products with weights and two in attention. Each has two more in backward.
    assert len(half) == 3 * (4 + 2) * 3
