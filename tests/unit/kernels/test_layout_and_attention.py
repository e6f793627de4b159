"""Layout of tokens without padding, and attention within each sequence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from bert_pld.kernels import attention, reference_attention
from bert_pld.kernels.layout import kept_layouts, packed_layout, padded_layout

LENGTHS = np.array([5, 1, 8, 3])
MASK = torch.arange(8) < torch.tensor(LENGTHS)[:, None]


def test_packing_and_padding_are_inverse():
    layout = packed_layout(MASK, LENGTHS)
    values = torch.randn(4, 8, 3)
    packed = layout.pack(values)
    assert packed.shape == (17, 3)
    assert torch.equal(packed, values[MASK])
    assert torch.equal(layout.pad(packed), values * MASK[..., None])
    assert layout.cumulative_lengths.tolist() == [0, 5, 6, 14, 17]
    assert (layout.total, layout.longest) == (17, 8)


def test_rows_of_positions_and_of_first_tokens():
    layout = packed_layout(MASK, LENGTHS)
    ids = torch.arange(32).view(4, 8)
    assert layout.pack(ids)[layout.first_rows].tolist() == [0, 8, 16, 24]
    positions = torch.tensor([4, 8, 23, 26])
    assert layout.pack(ids)[layout.rows_of(positions)].tolist() == positions.tolist()
    full = padded_layout(ids)
    assert full.rows_of(positions) is positions
    assert full.first_rows.tolist() == [0, 8, 16, 24]


def test_lengths_may_come_from_a_mask_with_padding_at_the_end():
    mask = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4, [True] * 4])
    layout = packed_layout(mask, None)
    assert layout.lengths.tolist() == [3, 1, 0, 4]
    assert layout.positions.tolist() == [0, 1, 2, 4, 12, 13, 14, 15]


@pytest.mark.parametrize("row", [[False, True, True, True], [True, False, True, True]], ids=["left", "hole"])
def test_padding_before_a_token_is_refused_where_the_mask_gives_the_lengths(row):
    mask = torch.tensor([[True, True, False, False], row])
    with pytest.raises(
        ValueError, match=r"^attention_mask: row 1 has padding before a token; .* at the end of each row$"
    ):
        packed_layout(mask, None)


@pytest.mark.parametrize("packed", [True, False])
def test_kept_sequences_have_correct_rows_and_cumulative_lengths(packed):
    layout = packed_layout(MASK, LENGTHS) if packed else padded_layout(MASK)
    kept = [None, np.array([0, 2]), np.array([3]), np.array([], dtype=np.int64), np.arange(4)]
    layouts = kept_layouts(layout, kept)
    assert layouts[0] == (layout, None)
    stream = torch.arange(layout.total)
    sequence = torch.repeat_interleave(torch.arange(4), torch.from_numpy(layout.lengths))
    for rows, (own, row_map) in zip(kept[1:], layouts[1:], strict=True):
        chosen = stream[torch.isin(sequence, torch.from_numpy(rows))]
        assert own.total == row_map.count == len(chosen)
        assert own.lengths.tolist() == layout.lengths[rows].tolist()
        assert row_map.compact_row[chosen].tolist() == list(range(len(chosen)))
        assert (row_map.compact_row == -1).sum() == layout.total - len(chosen)
        if packed:
            assert own.cumulative_lengths.tolist() == [0, *np.cumsum(LENGTHS[rows])]


def test_layouts_without_dropped_sequences_are_not_copied():
    layout = padded_layout(MASK)
    assert kept_layouts(layout, [None, None]) == [(layout, None)] * 2


def test_packed_sequences_attend_only_to_themselves():
    qkv = torch.randn(4, 8, 24, generator=torch.Generator().manual_seed(0))
    expected = reference_attention.self_attention(qkv, 2, MASK, 0.0)[MASK]
    layout = packed_layout(MASK, LENGTHS)
    assert torch.allclose(attention.self_attention(qkv[MASK], 2, layout, 0.0), expected, atol=1e-6)
    full = padded_layout(MASK)
    dense = attention.self_attention(qkv.flatten(0, 1), 2, full, 0.0)
    assert torch.allclose(dense, reference_attention.self_attention(qkv, 2, None, 0.0).flatten(0, 1), atol=1e-6)


def test_variable_length_kernel_accepts_its_arguments_and_is_differentiable():
    """Meta tensors have shapes and gradients but no values: this checks the operator's arguments without a GPU."""
    layout = packed_layout(MASK, LENGTHS)
    qkv = torch.randn(17, 3 * 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
    assert attention.runs_packed(torch.device("cuda"), qkv.dtype, 16)
    assert not attention.runs_packed(torch.device("cpu"), qkv.dtype, 16)
    edges = layout.cumulative_lengths.to("meta")
    parts = (part.unflatten(1, (4, 16)) for part in qkv.chunk(3, dim=1))
    out = attention.packed_attention(*parts, dataclasses.replace(layout, cumulative_lengths=edges), 0.1)
    assert out.shape == (17, 64)
    out.backward(torch.empty_like(out))
    assert qkv.grad.shape == qkv.shape


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_variable_length_kernel_equals_padded_attention(dtype):
    lengths = np.array([128, 1, 77, 128, 40])
    mask = (torch.arange(128) < torch.tensor(lengths)[:, None]).cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    wide = torch.randn(5, 128, 3 * 128, device="cuda", generator=generator)
    upstream = torch.randn(5, 128, 128, device="cuda", generator=generator)[mask]
    layout = packed_layout(mask, lengths)
    packed = wide[mask].to(dtype).requires_grad_()
    out = attention.self_attention(packed, 2, layout, 0.0)
    out.backward(upstream.to(dtype))
    exact = wide[mask].to(dtype).float().requires_grad_()
    expected = attention.self_attention(exact, 2, layout, 0.0)
    expected.backward(upstream.to(dtype).float())
    for actual, truth in ((out, expected), (packed.grad, exact.grad)):
        assert ((actual.float() - truth).norm() / truth.norm()).item() < 1e-2


@pytest.mark.gpu
def test_variable_length_attention_with_dropout_is_attention_on_average():
    lengths = np.array([16, 9])
    mask = (torch.arange(16) < torch.tensor(lengths)[:, None]).cuda()
    layout = packed_layout(mask, lengths)
    qkv = torch.randn(25, 3 * 64, device="cuda", generator=torch.Generator("cuda").manual_seed(0)).bfloat16()
    exact = attention.self_attention(qkv, 1, layout, 0.0).float()
    mean = sum(attention.self_attention(qkv, 1, layout, 0.2).float() for _ in range(2000)) / 2000
    assert (mean - exact).abs().max().item() < 0.06
    assert not torch.equal(attention.self_attention(qkv, 1, layout, 0.2).float(), exact)
