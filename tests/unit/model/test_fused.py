"""The fused encoder against the eager one: every granularity, with and without padding."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from recorded_operators import RecordOperators, record_launches
from tiny_model import LENGTHS, ROWS, SEQ, drawn_gates, fixed_gates, gradients, make_batch, make_model

from bert_pld.cost.flops import ModelFlops
from bert_pld.kernels import reference
from bert_pld.model import fused, fused_embeddings, use_backend
from bert_pld.pld import BlockGate

# On a machine with a GPU kernels are not interpreted; tests/gpu runs whole models there.
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted kernels only")

SOME = [
    BlockGate(keep=True, scale=1.25, keep_probability=0.8, rows=torch.tensor([0, 1, 3])),
    BlockGate(keep=True, scale=1.5, keep_probability=0.67, rows=torch.tensor([2])),
    BlockGate(keep=False, scale=2.0, keep_probability=0.5),
    BlockGate(keep=True, scale=2.0, keep_probability=0.5, rows=torch.tensor([1, 2])),
]
GATES = {
    "no gates": None,
    "batch": fixed_gates([1, 0, 1], scale=1.5),
    "first blocks dropped": fixed_gates([0, 0, 1], scale=1.5),
    "last block dropped": fixed_gates([1, 1, 0], scale=1.5),
    "all dropped": fixed_gates([0, 0, 0], scale=1.5),
    "sample": SOME,
}
CASES = [(name, "padded") for name in GATES] + [(name, "full") for name in ("no gates", "batch", "sample")]


def fused_model(**options):
    model = make_model(**options)
    use_backend(model, "triton", "cpu")
    return model


def assert_equal_gradients(actual, expected, rtol=2e-4):
    assert actual.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max().item()
        assert torch.allclose(actual[name], expected[name], atol=rtol * scale + 1e-7), name


@pytest.mark.parametrize(("name", "rows"), CASES)
@pytest.mark.parametrize("normalization", ["pre", "post"])
def test_loss_and_every_gradient_equal_those_of_the_eager_model(normalization, name, rows):
    gates, batch = GATES[name], make_batch(padded=rows == "padded")
    options = {"normalization": normalization, "num_layers": 3 if gates is None else len(gates)}
    loss, expected = gradients(make_model(**options), gates, **batch)
    fused_loss, actual = gradients(fused_model(**options), gates, **batch)
    assert fused_loss == pytest.approx(loss, rel=1e-5)
    assert_equal_gradients(actual, expected)


@pytest.mark.parametrize(
    ("granularity", "options", "padded", "step"),
    [
        ("batch", {"num_layers": 4}, True, 2),
        ("sample", {"num_layers": 1}, True, 0),
        ("sample", {"num_layers": 4}, False, 1),
        ("token", {"num_layers": 1}, True, 0),
        ("token", {"num_layers": 3}, True, 1),
        ("token", {"num_layers": 3}, False, 0),
        ("token", {"num_layers": 3, "normalization": "post"}, True, 1),
        ("token", {"num_layers": 3, "normalization": "post"}, False, 0),
    ],
    ids=str,
)
def test_fused_equals_eager_under_drawn_gates(granularity, options, padded, step):
    batch = make_batch(padded=padded)
    gates = drawn_gates(granularity, step, options["num_layers"], padded)
    loss, expected = gradients(make_model(**options), gates, **batch)
    fused_loss, actual = gradients(fused_model(**options), gates, **batch)
    assert fused_loss == pytest.approx(loss, rel=1e-5)
    assert_equal_gradients(actual, expected)


def embed_by_formula(embeddings, input_ids, token_type_ids, layout, dropout):
    tokens = layout.pack(input_ids), layout.token_positions, layout.pack(token_type_ids)
    return reference.embed(fused_embeddings.tables_of(embeddings), *tokens, dropout)


@pytest.mark.parametrize("normalization", ["pre", "post"])
@pytest.mark.parametrize("gates", [SOME[1:], drawn_gates("token", num_layers=2)], ids=["sample", "token"])
def test_kernels_with_dropout_equal_their_formulas(gates, normalization, monkeypatch):
    """The specification, which replaces each kernel, draws the same masks from the counter."""
    results = []
    for formulas in (False, True):
        if formulas:
            for name in ("add_norm", "bias_gelu"):
                monkeypatch.setattr(fused, name, getattr(reference, name))
        model = fused_model(normalization=normalization, hidden_dropout=0.3, num_layers=len(gates))
        if formulas:
            model.encoder.embeddings.run = embed_by_formula
        torch.manual_seed(5)
        results.append(gradients(model, gates))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert_equal_gradients(results[0][1], results[1][1])


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("granularity", ["batch", "sample", "token"])
def test_recomputed_blocks_give_the_same_bits_under_dropout(granularity):
    gates = drawn_gates(granularity, step=2, num_layers=3)
    options, results = {"num_layers": 3, "hidden_dropout": 0.2, "attention_dropout": 0.2}, []
    for checkpointing in (False, True):
        model = fused_model(activation_checkpointing=checkpointing, **options)
        torch.manual_seed(1)
        results.append(gradients(model, gates))
    (loss, plain), (loss_again, recomputed) = results
    assert loss == loss_again
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


@pytest.mark.usefixtures("few_programs")
def test_every_sub_layer_has_its_own_dropout_site_and_every_forward_its_own_seed(monkeypatch):
    seen, real = [], fused.add_norm

    def spy(*inputs):
        seen.extend(value.dropout for value in inputs if isinstance(value, reference.Join))
        return real(*inputs)

    monkeypatch.setattr(fused, "add_norm", spy)
    model = fused_model(num_layers=3, hidden_dropout=0.5)
    model.encoder.embeddings.register_forward_pre_hook(
        lambda _, inputs, keywords: seen.append(keywords["dropout"]), with_kwargs=True
    )
    for _ in range(2):
        model(**make_batch())
    assert len({(dropout.seed, dropout.site) for dropout in seen}) == len(seen) == 2 * 7
    assert len({dropout.seed for dropout in seen[:7]} & {dropout.seed for dropout in seen[7:]}) == 0


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("normalization", ["pre", "post"])
def test_only_tensors_differ_between_the_blocks_launches_of_two_micro_batches(normalization, monkeypatch):
    """A CUDA graph repeats every other argument: seeds, scales and the block that a pending output is of.

    The embeddings are in no graph.
    """
    launches = record_launches(monkeypatch)
    model = fused_model(normalization=normalization, hidden_dropout=0.2, num_layers=2)
    for scale in (1.5, 1.25):
        gradients(model, fixed_gates([1, 1], scale), **make_batch(padded=False))
    launches = [one for one in launches if not one[0].startswith(("embedding_", "sum_chunks_", "join_chunks_"))]
    first, second = launches[: len(launches) // 2], launches[len(launches) // 2 :]
    assert first == second
    assert len(first) == 2 * 7 + 2 * (normalization == "pre") + 1


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("normalization", ["pre", "post"])
@pytest.mark.parametrize("pattern", [[0, 1, 0], [0, 0, 0], [1, 0, 1]])
def test_dropped_blocks_with_zero_gradients_change_nothing_else(pattern, normalization):
    options = {"num_layers": 3, "normalization": normalization}
    loss, expected = gradients(fused_model(**options), fixed_gates(pattern, 1.5))
    loss_again, actual = gradients(fused_model(**options), fixed_gates(pattern, 1.5, zero_gradient_when_dropped=True))
    assert loss_again == loss
    for name, gradient in actual.items():
        assert torch.equal(gradient, expected[name] if name in expected else torch.zeros_like(gradient)), name
    assert len(actual) == len(list(make_model(**options).parameters()))


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize("normalization", ["pre", "post"])
def test_every_module_with_parameters_is_entered_by_a_module_call(normalization, padded):
    """ZeRO-3 gathers a module's parameters in hooks of its call; without the call they would be empty.

    It finds those that the embeddings read from their parts, and gathers them with the embeddings.
    """
    model = fused_model(normalization=normalization)
    owners = {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    calls = collections.Counter()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    gates = fixed_gates([1, 0, 0, 1], 1.5, zero_gradient_when_dropped=True)
    model(**make_batch(padded=padded), gates=gates)
    owners = {"encoder.embeddings" if name.startswith("encoder.embeddings.") else name for name in owners}
    assert {name: calls[name] for name in owners} == dict.fromkeys(owners, 1)
    assert sum(name.startswith("encoder.blocks.") for name in owners) == 4


@pytest.mark.parametrize("options", [{"type_vocab_size": 3}, {"type_vocab_size": 1, "position_offset": 2}], ids=str)
def test_other_numbers_of_segments_have_the_eager_gradients(options):
    batch = make_batch()
    if options["type_vocab_size"] == 3:  # The kernels support two; then the embeddings are eager.
        batch["token_type_ids"][0, 3] = 2
    loss, expected = gradients(make_model(**options, num_layers=1), None, **batch)
    fused_loss, actual = gradients(fused_model(**options, num_layers=1), None, **batch)
    assert fused_loss == pytest.approx(loss, rel=1e-5)
    assert_equal_gradients(actual, expected)


def products_of_blocks(gates, normalization="pre", **batch):
    """Return the factors of the blocks' matrix products, without those of the head."""
    model = fused_model(num_layers=4, next_sentence_prediction=False, normalization=normalization)
    batch = {**make_batch(), **batch, "next_sentence_labels": None, "gates": gates}
    with torch.no_grad(), RecordOperators() as recorded:
        model(**batch)
    left = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}  # the product's left factor
    products = [(arguments, left[operator]) for operator, arguments, _ in recorded.calls if operator in left]
    return [(arguments[index].shape, arguments[index + 1].shape) for arguments, index in products[:-2]]


def rows_of_matrix_products(gates, **options):
    return [left[0] for left, _ in products_of_blocks(gates, **options)]


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("normalization", ["pre", "post"])
@pytest.mark.parametrize("gates", [None, fixed_gates([1, 0, 1, 0]), fixed_gates([0, 0, 0, 0])])
def test_counted_flops_are_those_of_the_matrix_products(gates, normalization):
    counted = ModelFlops(make_model(next_sentence_prediction=False).config, SEQ)
    run = 4 if gates is None else sum(gate.keep for gate in gates)
    executed = counted.gated_blocks(LENGTHS, gates) - counted.left_out(LENGTHS, gates, 6)
    forward = sum(2 * left[0] * left[1] * right[1] for left, right in products_of_blocks(gates, normalization))
    assert forward == pytest.approx((executed - run * counted.attention(LENGTHS)) / 3)


@pytest.mark.usefixtures("few_programs")
def test_padding_dropped_sequences_and_rows_without_a_loss_run_no_matrix_product():
    """In the last block that runs, the three products after attention see the six masked tokens alone."""
    tokens, lengths = 16 + 12 + 9 + 16, [16, 12, 9, 16]
    assert rows_of_matrix_products(None) == [tokens] * 13 + [6] * 3
    assert rows_of_matrix_products(None, attention_mask=None) == [ROWS * SEQ] * 13 + [6] * 3
    for normalization in ("pre", "post"):
        gates = fixed_gates([1, 0, 0, 1])
        assert rows_of_matrix_products(gates, normalization=normalization) == [tokens] * 5 + [6] * 3
    assert rows_of_matrix_products(fixed_gates([1, 1, 0, 0])) == [tokens] * 5 + [6] * 3
    kept = [[0, 1, 3], [2], [1, 2]]
    assert rows_of_matrix_products(SOME) == [sum(lengths[i] for i in rows) for rows in kept for _ in range(4)]


@pytest.mark.usefixtures("few_programs")
def test_lengths_from_the_host_and_from_the_mask_give_the_same_loss():
    model = fused_model().eval()
    expected = model(**make_batch())["loss"].item()
    assert model(**make_batch(), sequence_lengths=np.array([16, 12, 9, 16]))["loss"].item() == expected


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("normalization", ["pre", "post"])
@pytest.mark.parametrize("gates", GATES.values(), ids=GATES)
def test_chosen_hidden_states_are_those_of_all_tokens(gates, normalization):
    num_layers = 3 if gates is None else len(gates)
    batch, model = make_batch(), fused_model(normalization=normalization, num_layers=num_layers).eval()
    inputs = [batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")] + [gates, None, None]
    with torch.no_grad():
        every, layout = model.encoder.encode(*inputs)
        for positions in (batch["masked_positions"], torch.tensor([0, 3, 3]), torch.tensor([], dtype=torch.int64)):
            chosen = model.encoder.encode_chosen(positions, True, *inputs)
            rows = torch.cat([layout.rows_of(positions), layout.first_rows])
            assert torch.allclose(chosen, every[rows], atol=1e-6)


def test_encoder_returns_hidden_states_padded_with_zeros():
    batch, model = make_batch(), fused_model().eval()
    with torch.no_grad():
        padded = model.encoder(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
        eager = make_model().eval().encoder(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    assert padded.shape == (ROWS, SEQ, 32)
    assert not padded[~batch["attention_mask"]].any()
    assert torch.allclose(padded[batch["attention_mask"]], eager[batch["attention_mask"]], atol=1e-5)


@pytest.mark.usefixtures("few_programs")
def test_bf16_loss_is_close_to_fp32():
    loss, _ = gradients(make_model(), SOME)
    model = fused_model().bfloat16()
    assert gradients(model, SOME)[0] == pytest.approx(loss, rel=0.03)
