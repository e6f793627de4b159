"""ModernBERT's fused encoder, with interpreted kernels, equals its eager one."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from modern_model import LENGTHS, ROWS, SEQ, make_modern, modern_batch
from recorded_operators import RecordOperators

from bert_pld.kernels import reference, reference_attention
from bert_pld.model import modern_fused, use_backend
from bert_pld.pld import BlockGate, Schedule, draw_gates

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted kernels only")
# Documents that fill the tokens of the rows.
DOCUMENTS = {True: np.array([20, 44, 3, 30, 7, 23]), False: np.array([64, 10, 54, 30, 34])}


def eager_modern(**options):
    """A global, two local and a global block."""
    return make_modern(num_layers=4, **options).train()


def fused_modern(**options):
    model = eager_modern(**options)
    use_backend(model, "triton", "cpu")
    return model


def drawn(granularity, padded=True, step=0):
    lengths = LENGTHS if padded else np.full(ROWS, SEQ)
    return draw_gates(
        Schedule(4, 0.5, temporal="constant", depth="uniform"), granularity=granularity, seed=1, step=step, rows=ROWS,
        lengths=lengths, padded_length=SEQ,
    )  # fmt: skip


def gradients(model, gates, padded=True, **more):
    model.zero_grad(set_to_none=True)
    loss = model(**modern_batch(padded=padded), gates=gates, **more)["loss"]
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(actual, expected):
    assert actual[0] == pytest.approx(expected[0], rel=1e-5)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(actual[1][name], gradient, atol=1e-5 * max(largest, 1.0), rtol=0)


@pytest.mark.parametrize(
    ("granularity", "padded"),
    [(None, True), (None, False), ("batch", True), ("sample", True), ("token", True), ("token", False)],
)
def test_fused_equals_eager_at_every_granularity(granularity, padded):
    gates = None if granularity is None else drawn(granularity, padded, step=3)
    assert_equal(gradients(fused_modern(), gates, padded), gradients(eager_modern(), gates, padded))


@pytest.mark.parametrize(
    ("granularity", "padded"), [(None, True), ("sample", False), ("token", True), ("token", False)]
)
def test_fused_equals_eager_where_rows_hold_several_documents(granularity, padded):
    gates = None if granularity is None else drawn(granularity, padded)
    more = {"document_lengths": DOCUMENTS[padded], "sequence_lengths": LENGTHS if padded else None}
    assert_equal(gradients(fused_modern(), gates, padded, **more), gradients(eager_modern(), gates, padded, **more))


def test_kernels_with_dropout_equal_their_formulas(monkeypatch):
    results = []
    for formulas in (False, True):
        if formulas:
            for module, name in ((reference, "add_norm"), (reference, "geglu"), (reference_attention, "rotary_heads")):
                monkeypatch.setattr(modern_fused, name, getattr(module, name))
        model = fused_modern(hidden_dropout=0.2, attention_dropout=0.3)
        torch.manual_seed(5)
        results.append(gradients(model, drawn("token")))
    assert_equal(*results)


@pytest.mark.usefixtures("few_programs")
def test_recomputed_blocks_give_the_same_bits_under_dropout():
    results = []
    for checkpointing in (False, True):
        model = fused_modern(activation_checkpointing=checkpointing, hidden_dropout=0.2, attention_dropout=0.2)
        torch.manual_seed(1)
        results.append(gradients(model, drawn("token", step=3)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(gradient, results[1][1][name]) for name, gradient in results[0][1].items())


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("pattern", [[0, 1, 0, 1], [0, 0, 0, 0]])
def test_dropped_blocks_with_zero_gradients_change_nothing_else(pattern):
    def gates(**options):
        return [BlockGate(keep=bool(keep), scale=1.5, keep_probability=1 / 1.5, **options) for keep in pattern]

    loss, expected = gradients(fused_modern(), gates())
    loss_again, actual = gradients(fused_modern(), gates(zero_gradient_when_dropped=True))
    assert loss_again == loss
    assert actual.keys() == dict(eager_modern().named_parameters()).keys()
    for name, gradient in actual.items():
        assert torch.equal(gradient, expected.get(name, torch.zeros_like(gradient))), name


@pytest.mark.usefixtures("few_programs")
def test_every_module_with_parameters_is_entered_by_a_module_call():
    """ZeRO-3 gathers a module's parameters in hooks of its call; without the call they would be empty.

    It finds those that the embeddings read from their parts, and gathers them with the embeddings.
    """
    model = fused_modern()
    owners = {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    calls = collections.Counter()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    model(**modern_batch())
    owners = {"encoder.embeddings" if name.startswith("encoder.embeddings.") else name for name in owners}
    assert {name: calls[name] for name in owners} == dict.fromkeys(owners, 1)


def test_encoder_returns_all_hidden_states_padded_with_zeros():
    batch, inputs = modern_batch(), ("input_ids", "token_type_ids", "attention_mask")
    with torch.no_grad():
        found, expected = (
            make().eval().encoder(*(batch[key] for key in inputs)) for make in (fused_modern, eager_modern)
        )
    mask = batch["attention_mask"]
    assert not found[~mask].any()
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=0)


@pytest.mark.usefixtures("few_programs")
def test_after_the_last_block_s_attention_only_masked_tokens_are_computed():
    """Rows of the matrix products of the last block and the head, and of those before."""
    model, batch = fused_modern(), modern_batch()
    with torch.no_grad(), RecordOperators() as recorded:
        model(**batch)
    products = [arguments[0].shape[0] for op, arguments, _ in recorded.calls if op is torch.ops.aten.mm.default]
    tokens, masked = int(LENGTHS.sum()), len(batch["masked_positions"])
    assert products[: 4 * 4] == [tokens] * 13 + [masked] * 3
