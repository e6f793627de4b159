"""Micro-batches with padding are filled up to a fixed number of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bert_pld.kernels.filling import Filling
from bert_pld.kernels.layout import packed_layout, token_layouts
from bert_pld.pld.subsets import draw_token_subsets, kept_counts

BATCH, SEQ = 8, 32


def lengths_of(seed, shortest=20):
    return np.random.default_rng(seed).integers(shortest, SEQ + 1, BATCH)


def layout_of(lengths, filling):
    return packed_layout(torch.arange(SEQ) < torch.from_numpy(lengths)[:, None], lengths, filling=filling)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.77, 0.99])
def test_every_block_has_enough_rows_and_no_more_fillers_than_the_stream(share):
    filling = Filling(fewest_tokens=165, most_tokens=220, batch=BATCH, padded_length=SEQ)
    for seed in range(200):
        lengths = lengths_of(seed)
        tokens, kept = int(lengths.sum()), int(kept_counts(share, lengths).sum())
        if filling.fits(tokens):
            assert 0 <= filling.rows(share) - kept <= filling.rows() - tokens <= filling.sequences * SEQ


def test_filled_layouts_have_the_same_shapes_and_the_tokens_come_first():
    filling, shares = Filling.for_tokens(212, BATCH, SEQ), [1.0, 0.5, 0.3]
    shapes = set()
    for seed in range(20):
        lengths = lengths_of(seed)
        stream, tokens = layout_of(lengths, filling), int(lengths.sum())
        assert (stream.tokens, stream.sequences) == (tokens, BATCH)
        assert torch.equal(stream.cumulative_lengths[:BATCH], layout_of(lengths, None).cumulative_lengths[:-1])
        drawn = draw_token_subsets(
            shares, seed=0, step=seed, micro_step=0, first_row=0, lengths=lengths, padded_length=SEQ, device="cpu"
        )
        subsets = [(None, None) if one is None else (one.kept, one.counts) for one in drawn]
        layouts = token_layouts(stream, subsets, shares)
        unfilled = token_layouts(layout_of(lengths, None), subsets)
        for (own, rows), (_, expected), share in zip(layouts[1:], unfilled[1:], shares[1:], strict=True):
            assert torch.equal(rows.compact_row[:tokens], expected.compact_row)
            fillers = rows.compact_row[tokens:]
            assert torch.equal(fillers[fillers >= 0].long(), torch.arange(expected.count, filling.rows(share)))
            assert rows.count == own.total == int(own.cumulative_lengths[-1]) == filling.rows(share)
            shapes.add((share, own.total, own.longest, len(own.lengths)))
        shapes.add((1.0, stream.total, stream.longest, len(stream.lengths)))
    assert len(shapes) == 3


def test_padding_a_filled_stream_leaves_the_fillers_out():
    lengths = lengths_of(3)
    layout = layout_of(lengths, Filling.for_tokens(int(lengths.sum()), BATCH, SEQ))
    values = torch.arange(layout.total, dtype=torch.float32)[:, None] + 1
    padded = layout.pad(values)
    assert torch.equal(padded, layout_of(lengths, None).pad(values[: layout.tokens]))
    assert torch.equal(layout.first_rows, layout_of(lengths, None).first_rows)
    assert padded.shape == (BATCH, SEQ, 1)


@pytest.mark.parametrize(("tokens", "fits"), [(220, True), (221, False), (165, True), (164, False)])
def test_micro_batches_with_too_many_or_far_fewer_tokens_are_not_filled(tokens, fits):
    assert Filling(fewest_tokens=165, most_tokens=220, batch=BATCH, padded_length=SEQ).fits(tokens) is fits


@pytest.mark.parametrize(("batch", "mean"), [(8, 0.5), (8, 0.86), (64, 0.7), (512, 0.86)])
def test_hardly_any_micro_batch_is_left_unfilled(batch, mean):
    """Of sequences whose lengths have a standard deviation of a fifth of S."""
    draws = np.random.default_rng(0).normal(mean * SEQ, 0.2 * SEQ, (4000, batch)).clip(1, SEQ).round().sum(1)
    filling = Filling.for_tokens(draws.mean(), batch, SEQ)
    assert np.mean([filling.fits(int(tokens)) for tokens in draws]) > 0.995
    assert filling.rows() - filling.fewest_tokens <= filling.sequences * SEQ
