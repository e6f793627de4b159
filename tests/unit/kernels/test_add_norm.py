"""The add_norm kernel against its formula: LayerNorm with gather; residual sum with scale, dropout and scatter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_comparison import assert_close_as_eager, outputs_and_gradients, random_tensor

from bert_pld.kernels import add_norm as fused
from bert_pld.kernels import reference
from bert_pld.kernels.dropout import CounterDropout, counter_keep_mask
from bert_pld.kernels.joins import join_words, on_device
from bert_pld.kernels.reference import Join, RowMap

EPS = 1e-5
WIDTHS = [96, 768, 1000, 1024]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYER_NORM = ["normed", "stream", "grad stream", "grad weight", "grad norm bias"]
ADD_NORM = [*LAYER_NORM, "grad values", "grad bias"]
SCALED = Join(scale=1.7)

pytestmark = pytest.mark.usefixtures("poisoned")


def row_map(kept: list[int], rows: int, device: str) -> RowMap:
    compact_row = torch.full((rows,), -1, dtype=torch.int32)
    compact_row[kept] = torch.arange(len(kept), dtype=torch.int32)
    return RowMap(compact_row.to(device), len(kept))


def some_rows(rows: int, seed: int) -> list[int]:
    """Return about two thirds of the rows."""
    chosen = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.66
    return chosen.nonzero().squeeze(1).tolist()


def make_inputs(rows, width, dtype, device, join=None):
    """Return stream, weight and bias of the LayerNorm, and with `join` the branch's values and bias."""
    shapes = [(rows, width), (width,), (width,)]
    if join is not None:
        shapes += [(rows if join.rows is None else join.rows.count, width), (width,)]
    inputs = [random_tensor(*shape, seed=seed, dtype=dtype, device=device) for seed, shape in enumerate(shapes)]
    return [2 * inputs[0] + 0.5, *inputs[1:]]


def check_add_norm(rows, width, dtype, device, join=None, chosen=None, used=(True, True)):
    """Compare the kernel with its formula; without `join` it is a LayerNorm."""
    shapes = [(rows if chosen is None else chosen.count, width), (rows, width)]
    upstream = [
        random_tensor(*shape, seed=8 + i, dtype=dtype, device=device) if used[i] else None
        for i, shape in enumerate(shapes)
    ]
    assert_close_as_eager(
        lambda *t: fused.add_norm(*t[:3], EPS, *t[3:], join=join, rows=chosen),
        lambda *t: reference.add_norm(*t[:3], EPS, *t[3:], join=join, rows=chosen),
        make_inputs(rows, width, dtype, device, join),
        upstream,
        LAYER_NORM if join is None else ADD_NORM,
    )


@pytest.mark.parametrize("join", [None, SCALED], ids=["layer norm", "scaled branch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [1, 13])
def test_layer_norm_and_sum_with_a_scaled_branch_equal_their_formula(rows, width, dtype, join, device):
    check_add_norm(rows, width, dtype, device, join)


@pytest.mark.parametrize("kept", [[], [0], [12], list(range(13)), some_rows(13, 0)], ids=str)
def test_layer_norm_gathers_the_given_rows(kept, device):
    check_add_norm(13, 96, torch.float32, device, chosen=row_map(kept, 13, device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_branch_is_dropped_out_by_the_counter_s_mask(width, dtype, device):
    dropout = CounterDropout(0.1, seed=(3 << 31) + 5, site=9)
    check_add_norm(13, width, dtype, device, Join(scale=1.25, dropout=dropout))


@pytest.mark.parametrize("width", [96, 1000])
@pytest.mark.parametrize("kept", [[], [0], [12], list(range(13)), some_rows(13, 1)], ids=str)
@pytest.mark.parametrize("next_kept", [[], [3], list(range(13)), some_rows(13, 2)], ids=str)
def test_kept_rows_are_scattered_and_the_next_block_s_gathered(kept, next_kept, width, device):
    dropout = CounterDropout(0.2, seed=77, site=4)
    join = Join(scale=2.0, dropout=dropout, rows=row_map(kept, 13, device))
    check_add_norm(13, width, torch.float32, device, join, row_map(next_kept, 13, device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather_and_scatter_in_low_precision(dtype, device):
    join = Join(1.5, CounterDropout(0.1, seed=1, site=2), row_map(some_rows(37, 3), 37, device))
    check_add_norm(37, 768, dtype, device, join, row_map(some_rows(37, 4), 37, device))


@pytest.mark.usefixtures("small_tiles")
def test_program_that_loops_over_several_tiles_sums_all_of_them(device):
    """23 rows make six tiles of at most four rows, more than there are programs on the interpreter."""
    join = Join(1.5, CounterDropout(0.1, seed=1, site=2), row_map(some_rows(23, 3), 23, device))
    check_add_norm(23, 1024, torch.float32, device, join, row_map(some_rows(23, 4), 23, device))


@pytest.mark.parametrize(("join", "used"), [(None, (True, False)), (SCALED, (True, False)), (SCALED, (False, True))])
def test_unused_output_contributes_no_gradient(join, used, device):
    check_add_norm(5, 96, torch.float32, device, join, used=used)


def test_repeated_calls_give_the_same_bits(device):
    join = Join(1.5, CounterDropout(0.1, seed=1, site=2), row_map(some_rows(13, 5), 13, device))
    inputs = make_inputs(13, 96, torch.bfloat16, device, join)
    upstream = [random_tensor(13, 96, seed=seed, device=device) for seed in (8, 9)]

    def add_norm(stream, weight, norm_bias, values, bias):
        return fused.add_norm(stream, weight, norm_bias, EPS, values, bias, join)

    runs = [outputs_and_gradients(add_norm, inputs, upstream) for _ in range(3)]
    assert all(torch.equal(first, again) for run in runs[1:] for first, again in zip(runs[0], run, strict=True))


def test_empty_input(device):
    for join in (None, SCALED):
        check_add_norm(0, 96, torch.float32, device, join)


def kernel_mask(dropout: CounterDropout, rows: int, width: int, device: str) -> torch.Tensor:
    """Return the elements that the kernel keeps of a branch of ones on a stream of zeros."""
    zeros, ones = torch.zeros(rows, width, device=device), torch.ones(width, device=device)
    _, stream = fused.add_norm(zeros, ones, ones, EPS, zeros + 1, 0 * ones, Join(1.0, dropout))
    kept = stream[stream != 0]
    assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - dropout.probability)), rtol=2e-4)
    return (stream != 0).cpu()


@pytest.mark.parametrize("width", [96, 1000])
def test_kernel_draws_the_specified_mask(width, device):
    for dropout in (CounterDropout(0.1), CounterDropout(0.5, seed=2**62 - 1, site=2**31 - 1)):
        assert torch.equal(kernel_mask(dropout, 13, width, device), counter_keep_mask(dropout, 13, width))


def test_kernels_read_seed_site_and_scale_from_the_device(device):
    """Overwriting the words changes what the same launch computes, forward and backward, to the bit."""
    first, second = Join(1.5, CounterDropout(0.3, seed=7, site=2)), Join(1.1, CounterDropout(0.3, (5 << 40) + 1, 9))
    (join,) = on_device([first], torch.device(device))
    inputs = make_inputs(13, 96, torch.float32, device, join)
    upstream = [random_tensor(13, 96, seed=seed, device=device) for seed in (8, 9)]

    def results(join):
        def add_norm(stream, weight, norm_bias, values, bias):
            return fused.add_norm(stream, weight, norm_bias, EPS, values, bias, join)

        return outputs_and_gradients(add_norm, inputs, upstream)

    for other in (first, second):
        join.words.copy_(torch.from_numpy(join_words([other]))[0])
        assert all(torch.equal(*both) for both in zip(results(join), results(other), strict=True))


def test_words_of_a_join_hold_its_seed_site_and_scale_exactly():
    join = Join(1.7, CounterDropout(0.1, seed=(3 << 31) + 5, site=9))
    words = join_words([Join(), join])
    assert words.shape == (2, 4)
    assert words[:, :3].tolist() == [[0, 0, 0], [5, 3, 9]]
    assert words[:, 3].view(np.float32).tolist() == [1.0, np.float32(1.7 * 2**16 / (2**16 - 6554))]


def test_stream_wider_than_the_maximum_is_rejected(device):
    inputs = make_inputs(1, 8200, torch.float32, device)
    with pytest.raises(AssertionError):
        fused.add_norm(*inputs, EPS)
