"""Rows of several documents: each document is computed as if it were alone."""

import numpy as np
import pytest
import torch
from packed_documents import (
    ROWS,
    document_batch,
    document_gate,
    loss_and_gradients,
    make_packed_model,
    packed_batch,
    packed_gates,
    places,
)
from token_logits import token_logits

INTERPRETED = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted kernels only")
BACKENDS = {
    "bert": ("bert", "reference"),
    "modernbert": ("modernbert", "reference"),
    "bert-triton": pytest.param("bert", "triton", marks=INTERPRETED),
    "modernbert-triton": pytest.param("modernbert", "triton", marks=INTERPRETED),
}
backends = pytest.mark.parametrize(("architecture", "backend"), BACKENDS.values(), ids=BACKENDS)
# The interpreter is slow: there, long rows are left out, and full ones beside short ones are thorough.
IN_INTERPRETER = {"short": [INTERPRETED], "short, full": [INTERPRETED, pytest.mark.thorough]}
CASES = [
    pytest.param(architecture, backend, rows, id=f"{architecture}-{backend}-{rows}", marks=marks)
    for architecture in ("bert", "modernbert")
    for backend, cases in (("reference", dict.fromkeys(ROWS, ())), ("triton", IN_INTERPRETER))
    for rows, marks in cases.items()
]


def assert_close(actual, expected):
    (loss, gradients), (expected_loss, expected_gradients) = actual, expected
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, gradient in expected_gradients.items():
        largest = gradient.abs().max().item()
        assert (gradients[name] - gradient).abs().max().item() <= 1e-5 * largest + 1e-7, name


@pytest.mark.parametrize(("architecture", "backend", "rows"), CASES)
@pytest.mark.parametrize("granularity", [None, "batch", "sample", "token"])
def test_loss_and_gradients_equal_those_of_the_documents_one_by_one(architecture, backend, rows, granularity):
    model, batch, gates = make_packed_model(architecture, backend), packed_batch(rows), packed_gates(granularity, rows)
    alone = make_packed_model(architecture)
    documents = [document_batch(batch, *place) for place in places(rows)]
    own = [None if gates is None else [document_gate(gate, *place) for gate in gates] for place in places(rows)]
    assert_close(loss_and_gradients(model, [batch], [gates]), loss_and_gradients(alone, documents, own))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_post_norm_documents_equal_themselves_one_by_one(backend):
    model, batch = make_packed_model("bert", backend, normalization="post"), packed_batch("short")
    documents = [document_batch(batch, *place) for place in places("short")]
    alone = make_packed_model("bert", normalization="post")
    assert_close(loss_and_gradients(model, [batch], [None]), loss_and_gradients(alone, documents, [None] * 5))


def logits(model, batch, gates):
    given = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
    lengths = {name: batch[name] for name in ("sequence_lengths", "document_lengths")}
    with torch.no_grad():
        hidden_states = model.encoder(**given, gates=gates, **lengths)
        return token_logits(model, hidden_states.flatten(0, 1))


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(("architecture", "backend", "rows"), [case for case in CASES if "full" not in case.id])
@pytest.mark.parametrize("granularity", [None, "token"])
def test_changed_document_leaves_the_logits_of_the_others_as_they_were(architecture, backend, rows, granularity):
    model, batch, gates = make_packed_model(architecture, backend), packed_batch(rows), packed_gates(granularity, rows)
    before = logits(model, batch, gates)
    row, begin, end = list(places(rows))[1]
    changed = batch["input_ids"].clone()
    changed[row, begin:end] = changed[row, begin:end] % 50 + 10
    after = logits(model, {**batch, "input_ids": changed}, gates)
    same = (before == after).all(1)
    first = row * ROWS[rows][0] + begin
    assert not same[first : first + end - begin].any()
    assert same[:first].all()
    assert same[first + end - begin :].all()


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_without_the_lengths_of_documents_rows_are_one_sequence_as_before(architecture):
    model, batch = make_packed_model(architecture), packed_batch("short, full")
    whole = {**batch, "document_lengths": None}
    as_one = {**batch, "document_lengths": np.array([24, 24])}
    assert model(**whole)["loss"].item() == pytest.approx(model(**as_one)["loss"].item(), rel=1e-6)
    assert model(**whole)["loss"].item() != pytest.approx(model(**batch)["loss"].item(), rel=1e-3)


@pytest.mark.parametrize("rows", ["short", "long"])
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_recomputed_blocks_give_the_same_bits_under_dropout(architecture, rows):
    batch, gates, results = packed_batch(rows), packed_gates("token", rows), []
    for checkpointing in (False, True):
        options = {"activation_checkpointing": checkpointing, "hidden_dropout": 0.2, "attention_dropout": 0.2}
        model = make_packed_model(architecture, **options)
        torch.manual_seed(1)
        results.append(loss_and_gradients(model, [batch], [gates]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], gradient) for name, gradient in results[1][1].items())


@pytest.mark.usefixtures("few_programs")
@backends
def test_dropped_blocks_have_zero_gradients_where_every_backward_must_set_them(architecture, backend):
    model, batch = make_packed_model(architecture, backend), packed_batch("short")
    gates = packed_gates("batch", "short", step=3, zero_gradient_when_dropped=True)
    dropped = next(index for index, gate in enumerate(gates) if not gate.keep)
    model.zero_grad(set_to_none=True)
    model(**batch, gates=gates)["loss"].backward()
    assert all(not parameter.grad.any() for parameter in model.encoder.blocks[dropped].parameters())


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_lengths_that_do_not_fill_the_rows_are_refused(architecture):
    batch = {**packed_batch("short"), "document_lengths": np.array([9, 20, 4, 4, 4])}
    with pytest.raises(ValueError, match=r"document_lengths: 41 tokens that do not fill rows of \[24, 17\] tokens"):
        make_packed_model(architecture)(**batch)
