"""The fused embeddings against their formula: BERT's, RoBERTa's, DistilBERT's and ModernBERT's, padded and packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_comparison import assert_close_as_eager, outputs_and_gradients, random_tensor
from recorded_operators import RecordOperators

from bert_pld.kernels import embedding_backward, reference, sorted_sum
from bert_pld.kernels.dropout import NO_DROPOUT, CounterDropout, counter_keep_mask
from bert_pld.kernels.embedding import embed
from bert_pld.kernels.embedding_forward import tokens_of
from bert_pld.kernels.layout import packed_layout, padded_layout
from bert_pld.kernels.reference import EmbeddingTables

VOCABULARY, POSITIONS, SEQ = 40, 12, 9
LENGTHS = np.array([9, 4, 1, 7, 9])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DROPOUT = CounterDropout(0.3, seed=(3 << 31) + 5, site=9)
PARTS = ("word", "position", "token_type", "norm_weight", "norm_bias")
KINDS = {
    "pre-norm": {"position": POSITIONS, "token_type": 2},
    "post-norm": {"position": POSITIONS, "token_type": 2, "norm_weight": None, "norm_bias": None},
    "one type": {"position": POSITIONS, "token_type": 1, "norm_weight": None, "norm_bias": None, "offset": 2},
    "no type": {"position": POSITIONS},
    "words alone": {"norm_weight": None},
}

pytestmark = pytest.mark.usefixtures("poisoned")


def layout_and_inputs(device, padded=True, documents=False):
    """Return the layout, ids and types of five rows; every third token has the same id."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (len(LENGTHS), SEQ), generator=generator)
    ids.view(-1)[::3] = 7
    types = torch.randint(0, 2, ids.shape, generator=generator)
    lengths = LENGTHS if padded else np.full(len(LENGTHS), SEQ)
    parts = [part for length in lengths for part in ([length] if length < 5 else [3, length - 3])]
    of_documents = np.array(parts) if documents else None
    ids, types = ids.to(device), types.to(device)
    if not padded:
        return padded_layout(ids, of_documents), ids, types
    mask = torch.arange(SEQ) < torch.from_numpy(lengths)[:, None]
    return packed_layout(mask.to(device), lengths, of_documents), ids, types


def make_parameters(kind, width, dtype, device):
    """Return the tensors of the tables that this kind has, by name."""
    sizes = {"word": VOCABULARY, **{name: rows for name, rows in KINDS[kind].items() if name in PARTS}}
    return {
        name: random_tensor(*([width] if rows is None else [rows, width]), seed=seed, dtype=dtype, device=device)
        for seed, (name, rows) in enumerate(sizes.items())
    }


def check_embed(kind, width, dtype, device, dropout=DROPOUT, **options):
    layout, ids, types = layout_and_inputs(device, **options)
    parameters = make_parameters(kind, width, dtype, device)
    sizes = {"eps": 1e-5, "position_offset": KINDS[kind].get("offset", 0)}
    places = layout.pack(ids), layout.token_positions, layout.pack(types)

    def tables(tensors):
        return EmbeddingTables(**dict(zip(parameters, tensors, strict=True)), **sizes)

    assert_close_as_eager(
        lambda *tensors: embed(tables(tensors), tokens_of(layout, ids, types), dropout),
        lambda *tensors: reference.embed(tables(tensors), *places, dropout),
        list(parameters.values()),
        [random_tensor(layout.total, width, seed=8, dtype=dtype, device=device)],
        ["embedded", *(f"grad {name}" for name in parameters)],
    )


@pytest.mark.parametrize("documents", [False, True], ids=["sequences", "documents"])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_and_every_gradient_equal_the_formula(kind, padded, documents, device):
    check_embed(kind, 32, torch.float32, device, padded=padded, documents=documents)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [768, 1000])
def test_wide_rows_in_every_precision(width, dtype, device):
    check_embed("post-norm", width, dtype, device)


@pytest.mark.parametrize("kind", ["pre-norm", "words alone"])
def test_without_dropout(kind, device):
    check_embed(kind, 96, torch.float32, device, NO_DROPOUT)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("kind", ["post-norm", "words alone"])
def test_programs_that_see_some_sequences_each_sum_all_of_them(kind, device, monkeypatch):
    """Tiles of two rows, as on a GPU; a program has four sequences, and meets them in two turns."""
    monkeypatch.setattr(embedding_backward, "SEQUENCES_A_PROGRAM", 4)
    check_embed(kind, 1000, torch.float32, device)


def test_kernel_draws_the_specified_mask(device):
    layout, ids, types = layout_and_inputs(device)
    tables = EmbeddingTables(torch.ones(VOCABULARY, 1000, device=device))
    kept = embed(tables, tokens_of(layout, ids, types), DROPOUT) != 0
    assert torch.equal(kept.cpu(), counter_keep_mask(DROPOUT, layout.total, 1000))


def test_repeated_calls_give_the_same_bits(device):
    layout, ids, types = layout_and_inputs(device)
    parameters = make_parameters("post-norm", 96, torch.bfloat16, device)
    upstream = [random_tensor(layout.total, 96, seed=8, device=device)]

    def run(*tensors):
        tables = EmbeddingTables(**dict(zip(parameters, tensors, strict=True)), eps=1e-5)
        return embed(tables, tokens_of(layout, ids, types), DROPOUT)

    runs = [outputs_and_gradients(run, list(parameters.values()), upstream) for _ in range(2)]
    assert all(torch.equal(first, again) for first, again in zip(*runs, strict=True))


def test_no_token_gives_zero_gradients(device):
    ids = torch.zeros(0, SEQ, dtype=torch.int64, device=device)
    parameters = make_parameters("post-norm", 32, torch.float32, device)
    tables = EmbeddingTables(**{name: tensor.requires_grad_() for name, tensor in parameters.items()}, eps=1e-5)
    out = embed(tables, tokens_of(padded_layout(ids), ids, ids), DROPOUT)
    gradients = torch.autograd.grad(out, list(parameters.values()), out)
    assert out.shape == (0, 32)
    assert not any(gradient.any() for gradient in gradients)


def test_frozen_word_table_needs_no_sort(device):
    layout, ids, types = layout_and_inputs(device)
    parameters = make_parameters("pre-norm", 32, torch.float32, device)
    parameters["position"].requires_grad_()
    with RecordOperators() as recorded:
        out = embed(EmbeddingTables(**parameters), tokens_of(layout, ids, types), DROPOUT)
        out.backward(torch.ones_like(out))
    assert not [operator for operator, *_ in recorded.calls if "sort" in str(operator)]
    assert parameters["word"].grad is None
    assert parameters["position"].grad.any()


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
def test_ids_and_types_may_be_views_that_are_not_contiguous(padded, device):
    layout, ids, types = layout_and_inputs(device, padded=padded)
    parameters = make_parameters("post-norm", 32, torch.float32, device)
    tables = EmbeddingTables(**{name: tensor.requires_grad_() for name, tensor in parameters.items()}, eps=1e-5)

    def run(own_ids, own_types):
        out = embed(tables, tokens_of(layout, own_ids, own_types), DROPOUT)
        return out, *torch.autograd.grad(out, list(parameters.values()), torch.ones_like(out).cumsum(0))

    stacked = torch.stack([ids, types], dim=-1)
    one_type = torch.ones(1, dtype=torch.int64, device=device).expand(ids.shape)
    for views in (stacked.unbind(-1), (stacked[..., 0], one_type)):
        copies = [view.clone(memory_format=torch.contiguous_format) for view in views]
        assert all(torch.equal(of_view, of_copy) for of_view, of_copy in zip(run(*views), run(*copies), strict=True))


@pytest.mark.parametrize("wrong", [-1, VOCABULARY])
def test_id_without_a_row_is_an_error(wrong):
    """On a GPU the kernel asserts it, as torch does; that ends the process, so it is not tested."""
    layout, ids, types = layout_and_inputs("cpu")
    ids[1, 2] = wrong
    with pytest.raises(IndexError, match="outside the embedding's 40 rows"):
        embed(EmbeddingTables(torch.ones(VOCABULARY, 32)), tokens_of(layout, ids, types), NO_DROPOUT)
    types[0, 0] = 2
    tables = EmbeddingTables(torch.ones(VOCABULARY, 32), torch.ones(POSITIONS, 32), torch.ones(2, 32))
    with pytest.raises(IndexError, match="outside the embedding's 2 rows"):
        embed(tables, tokens_of(layout, ids * 0, types), NO_DROPOUT)
    tables = EmbeddingTables(torch.ones(VOCABULARY, 32), torch.ones(SEQ, 32), position_offset=1)
    with pytest.raises(IndexError, match="a sequence has 9 tokens, and the embedding rows for 8 positions"):
        embed(tables, tokens_of(layout, ids * 0, types * 0), NO_DROPOUT)


RUNS = {
    "no rows": [],
    "one row": [1],
    "all different": [1] * 11,
    "ends with a chunk": [4, 8, 3, 1],
    "one id in all chunks": [37],
    "long and short": [1, 14, 2, 3, 9, 1, 1, 27, 5],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
def test_sum_by_id_adds_all_rows_of_each_id(runs, dtype, device, monkeypatch):
    """`runs` are the numbers of rows of ids 1, 3, 5, …; chunks of four rows, of which two are loaded at once."""
    for name, value in {"CHUNK": 4, "GROUP": 2, "PARTS": 2}.items():
        monkeypatch.setattr(sorted_sum, name, value)
    ids = torch.tensor([2 * index + 1 for index, count in enumerate(runs) for _ in range(count)], dtype=torch.int32)
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    rows = random_tensor(len(ids), 300, seed=3, dtype=dtype)
    table = sorted_sum.sum_rows_by_id(rows.to(device), ids.to(device), VOCABULARY).cpu()
    exact = torch.zeros(VOCABULARY, 300, dtype=torch.float64).index_add(0, ids.long(), rows.double())
    assert table.dtype == dtype
    torch.testing.assert_close(
        table.double(), exact.to(dtype).double(), atol=2e-5, rtol=2**-8 if dtype.itemsize == 2 else 0
    )
