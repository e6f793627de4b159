"""Decoder and cross-entropy in chunks: kernel against formula, and its memory."""

from __future__ import annotations

import pytest
import torch
from kernel_comparison import assert_close_as_eager, random_tensor
from recorded_operators import RecordOperators

from bert_pld.kernels import linear_cross_entropy as fused
from bert_pld.kernels import reference

pytestmark = pytest.mark.usefixtures("poisoned")
NAMES = ["loss", "correct", "grad hidden", "grad weight", "grad bias"]


def make_inputs(count, hidden, vocabulary, dtype, device):
    inputs = [
        random_tensor(count, hidden, seed=1, dtype=dtype, device=device),
        (random_tensor(vocabulary, hidden, seed=2, device=device) * 2 / hidden**0.5).to(dtype),
        random_tensor(vocabulary, seed=3, dtype=dtype, device=device),
    ]
    labels = torch.randint(0, vocabulary, (count,), generator=torch.Generator().manual_seed(4)).to(device)
    return inputs, labels


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("count", "hidden", "vocabulary"), [(1, 96, 77), (13, 64, 5000), (13, 1000, 30)])
def test_loss_and_gradients_equal_their_formula(count, hidden, vocabulary, dtype, chunk, device, monkeypatch):
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", chunk * vocabulary)
    inputs, labels = make_inputs(count, hidden, vocabulary, dtype, device)

    rows = fused.chunk_rows(count, vocabulary)

    def eager(values, weight, bias):
        # Split into the same chunks, because the error of a matrix product depends on its shape.
        pieces = [
            reference.linear_cross_entropy_sum(piece, weight, bias, some)
            for piece, some in zip(values.split(rows), labels.split(rows), strict=True)
        ]
        return tuple(sum(parts) for parts in zip(*pieces, strict=True))

    upstream = [torch.tensor(0.37, device=device), None]
    assert_close_as_eager(lambda *t: fused.linear_cross_entropy_sum(*t, labels), eager, inputs, upstream, NAMES)


@pytest.mark.parametrize(
    ("count", "chunks"), [(4_864, [4_864]), (9_000, [4_500, 4_500]), (17_587, [5_863, 5_863, 5_861]), (1, [1]), (0, [])]
)
def test_chunks_are_few_and_of_equal_size(count, chunks):
    """4,864 masked positions are those of 256 sequences of 128 tokens."""
    rows = fused.chunk_rows(count, 30_528)
    assert [len(piece) for piece in torch.arange(count).split(max(rows, 1)) if len(piece)] == chunks


def test_counts_the_labels_with_the_highest_logit(device):
    hidden = torch.eye(4, device=device)
    weight = torch.tensor([[5.0, 0, 0, 0], [0, 5, 0, 0], [0, 0, 5, 0], [0, 0, 0, 0]], device=device)
    labels = torch.tensor([0, 2, 2, 3], device=device)
    _, correct = fused.linear_cross_entropy_sum(hidden, weight, torch.zeros(4, device=device), labels)
    assert correct.item() == 2  # the logits of row 3 are all equal, so the first one counts as highest


def test_first_of_equal_logits_counts_as_highest_across_pieces(device):
    hidden, weight = torch.zeros(2, 3, device=device), torch.zeros(9000, 3, device=device)
    labels = torch.tensor([0, 5000], device=device)
    _, correct = fused.linear_cross_entropy_sum(hidden, weight, torch.zeros(9000, device=device), labels)
    assert correct.item() == 1


def test_labels_may_be_a_view_that_is_not_contiguous(device):
    inputs, labels = make_inputs(6, 8, 20, torch.float32, device)
    column = torch.stack([labels, labels + 100], dim=1)[:, 0]
    of_column, of_copy = (fused.linear_cross_entropy_sum(*inputs, some) for some in (column, labels))
    assert [out.item() for out in of_column] == [out.item() for out in of_copy]


@pytest.mark.parametrize("wrong", [-100, -1, 20])
@pytest.mark.parametrize("backend", [reference, fused], ids=["reference", "fused"])
def test_label_outside_the_vocabulary_is_an_error(backend, wrong):
    """On a GPU the kernel asserts it, as torch does; that ends the process, so it is not tested."""
    inputs, labels = make_inputs(5, 8, 20, torch.float32, "cpu")
    labels[3] = wrong
    with pytest.raises(IndexError, match=r"outside the vocabulary of 20 entries|Target -?\d+ is out of bounds"):
        backend.linear_cross_entropy_sum(*inputs, labels)


def test_no_positions_give_zero_loss_and_zero_gradients(device):
    inputs, labels = make_inputs(0, 8, 20, torch.float32, device)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    loss, correct = fused.linear_cross_entropy_sum(*leaves, labels)
    loss.backward()
    assert loss.item() == 0.0
    assert correct.item() == 0
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in leaves)


def test_no_gradients_are_computed_unless_required(device):
    inputs, labels = make_inputs(5, 8, 20, torch.float32, device)
    expected = reference.linear_cross_entropy_sum(*inputs, labels)
    actual = fused.linear_cross_entropy_sum(*inputs, labels)
    assert actual[0].item() == pytest.approx(expected[0].item(), rel=1e-6)
    _, _, gradients = fused.linear_cross_entropy_forward(*inputs, labels, want_gradients=False)
    assert gradients is None


def test_no_fp32_tensor_of_positions_by_vocabulary_is_allocated(device):
    """16-bit logits are never copied to fp32."""
    inputs, labels = make_inputs(40, 16, 500, torch.float16, device)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    with RecordOperators() as recorded:
        fused.linear_cross_entropy_sum(*leaves, labels)[0].backward()
    made = [(out.numel(), out.dtype) for *_, out in recorded.calls if isinstance(out, torch.Tensor)]
    assert max(numel for numel, dtype in made if dtype is torch.float16) == 40 * 500
    assert max(numel for numel, dtype in made if dtype is torch.float32) < 40 * 500 / 2
