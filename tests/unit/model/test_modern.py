"""ModernBERT's model equals the stock class: whole sequences, padding, windows, and the blocks under their gates."""

import math

import numpy as np
import pytest
import torch
import transformers
from imported_models import from_hugging_face
from modern_model import (
    LENGTHS,
    ROWS,
    SEQ,
    WINDOW,
    make_modern,
    modern_batch,
    modern_config,
    stock_inputs,
    stock_model,
)
from token_logits import token_logits

from bert_pld.config import ConfigError, load_config
from bert_pld.cost.flops import ModelFlops
from bert_pld.model import make_model
from bert_pld.pld import BlockGate, Schedule, draw_gates
from bert_pld.training.optimizer import block_matrices, parameter_groups

CASES = [("eager", True), ("sdpa", True), ("sdpa", False)]
HALF = Schedule(5, 0.5, temporal="constant", depth="uniform")


def drawn(granularity, step=0, padded=True, **options):
    lengths = LENGTHS if padded else np.full(ROWS, SEQ)
    return draw_gates(
        HALF, granularity=granularity, seed=1, step=step, rows=ROWS, lengths=lengths, padded_length=SEQ, **options
    )


def gradients(model, gates=None, **batch):
    model.zero_grad(set_to_none=True)
    outputs = model(**{**modern_batch(), **batch}, gates=gates)
    outputs["loss"].backward()
    return outputs["loss"], {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("attention", "padded"), CASES)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_logits_loss_and_gradients_equal_the_stock_class(attention, padded, activation):
    ours = make_modern(hidden_act=activation)
    theirs = stock_model(ours, attention)
    batch = modern_batch(padded=padded)
    mask = batch["attention_mask"]
    tokens = torch.ones(ROWS, SEQ, dtype=torch.bool) if mask is None else mask
    expected = theirs(**stock_inputs(batch))
    hidden_states = ours.encoder(batch["input_ids"], batch["token_type_ids"], mask)
    logits = token_logits(ours, hidden_states)
    assert expected.logits.abs().max() > 3
    torch.testing.assert_close(logits[tokens], expected.logits[tokens], atol=1e-5, rtol=0)

    loss, found = gradients(ours, **batch)
    expected.loss.backward()
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=0)
    of_theirs = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    _, of_theirs = from_hugging_face(theirs.config, of_theirs)
    assert found.keys() == of_theirs.keys()
    for name, gradient in found.items():
        assert gradient.abs().max() > 1e-3, name
        torch.testing.assert_close(gradient, of_theirs[name], atol=1e-5, rtol=0)


def test_a_local_block_attends_within_its_window_and_no_further():
    ours = make_modern(num_layers=2).eval()  # a global block that does nothing, and a local one
    with torch.no_grad():
        for name in ("attention_output_weight", "ffn_down_weight"):
            getattr(ours.encoder.blocks[0], name).zero_()
        batch = modern_batch(padded=False)
        before = ours.encoder(batch["input_ids"], batch["token_type_ids"])
        batch["input_ids"][:, 30] = 4
        changed = (ours.encoder(batch["input_ids"], batch["token_type_ids"]) != before).any(-1).any(0)
    reach = WINDOW // 2
    assert changed.nonzero().flatten().tolist() == list(range(30 - reach, 30 + reach + 1))


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
def test_blocks_on_some_tokens_equal_the_stock_layers_at_those_tokens_positions(padded):
    """The oracle runs each stock layer on each row's kept tokens alone, with the positions that they have in the row.

    Which tokens see each other is written out pair by pair from the positions.
    """
    ours = make_modern().eval()
    theirs = stock_model(ours).eval()
    batch, gates = modern_batch(padded=padded), drawn("token", padded=padded)
    inputs = batch["input_ids"], batch["token_type_ids"], batch["attention_mask"]
    lengths = LENGTHS if padded else [SEQ] * ROWS
    with torch.no_grad():
        found = ours.encoder(*inputs, gates)
        for row, length in enumerate(lengths):
            hidden = theirs.model.embeddings(batch["input_ids"][row : row + 1, :length])
            for index, layer in enumerate(theirs.model.layers):
                subset = gates[index].tokens
                kept = subset.kept[row, :length].nonzero().flatten()
                assert len(kept) == length // 2 + (length % 2)
                reach = WINDOW // 2 if layer.attention_type == "sliding_attention" else SEQ
                hidden_from = [[0.0 if abs(int(i) - int(j)) <= reach else -math.inf for j in kept] for i in kept]
                places = theirs.model.rotary_emb(hidden, kept[None], layer.attention_type)
                mask = torch.tensor(hidden_from)[None, None]
                hidden[:, kept] = layer(hidden[:, kept], attention_mask=mask, position_embeddings=places)
            torch.testing.assert_close(found[row, :length], theirs.model.final_norm(hidden)[0], atol=1e-5, rtol=0)


def test_rows_that_a_block_drops_skip_it_and_the_others_equal_all_rows():
    ours = make_modern(num_layers=2).eval()
    batch = modern_batch()
    inputs = batch["input_ids"], batch["token_type_ids"], batch["attention_mask"]
    for index in range(2):
        gates = [BlockGate(keep=True, scale=1.0, keep_probability=1.0)] * 2
        gates[index] = BlockGate(keep=True, scale=1.0, keep_probability=1.0, rows=torch.tensor([0, 2]))
        without = list(gates)
        without[index] = BlockGate(keep=False, scale=1.0, keep_probability=0.5)
        with torch.no_grad():
            some, every, none = (ours.encoder(*inputs, chosen) for chosen in (gates, None, without))
        assert torch.allclose(some[[0, 2]], every[[0, 2]], atol=1e-6)
        assert torch.equal(some[1], none[1])


@pytest.mark.parametrize("granularity", ["batch", "sample", "token"])
def test_activation_checkpointing_recomputes_under_the_same_gates(granularity):
    options = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    results = []
    for checkpointing in (False, True):
        model = make_modern(activation_checkpointing=checkpointing, **options).train()
        torch.manual_seed(5)
        results.append(gradients(model, drawn(granularity, step=3)))
    (loss, plain), (loss_again, recomputed) = results
    assert torch.equal(loss, loss_again)
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


@pytest.mark.parametrize("granularity", ["batch", "sample", "token"])
def test_dropped_blocks_get_zero_gradients_of_the_right_shape_where_zero_needs_them(granularity):
    model = make_modern().train()
    _, plain = gradients(model, drawn(granularity, step=2))
    _, all_of_them = gradients(model, drawn(granularity, step=2, zero_gradient_when_dropped=True))
    assert all_of_them.keys() == dict(model.named_parameters()).keys()
    for name, gradient in all_of_them.items():
        torch.testing.assert_close(gradient, plain.get(name, torch.zeros_like(gradient)), atol=1e-6, rtol=0)


def test_angles_stay_in_fp32_in_a_model_of_16_bits():
    """Positions beyond 256 are not numbers of bf16: angles from rounded ones would be wrong by whole radians."""
    model = make_modern(num_layers=2, local_attention=600).eval()
    ids = torch.randint(5, 64, (1, 600), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.encoder(ids, torch.zeros_like(ids))
        found = model.bfloat16().encoder(ids, torch.zeros_like(ids)).float()
    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_dropout_acts_where_the_stock_class_has_it():
    """The embeddings, the attention weights, the attention's output, the inside of the feed-forward; nothing else."""
    ours = make_modern(num_layers=1, hidden_dropout=0.0, attention_dropout=0.0)
    theirs = stock_model(make_modern(num_layers=1, hidden_dropout=0.5, attention_dropout=0.5))
    dropped = {name for name, module in theirs.named_modules() if getattr(module, "p", 0.0) == 0.5}
    assert dropped == {"model.embeddings.drop", "model.layers.0.attn.out_drop", "model.layers.0.mlp.drop"}
    batch = modern_batch(padded=False)

    def spread(**probabilities):
        model = make_model(modern_config(num_layers=1, **probabilities).model).train()
        model.load_state_dict(ours.state_dict())
        torch.manual_seed(0)
        outputs = [model.encoder(batch["input_ids"], batch["token_type_ids"]).detach() for _ in range(2)]
        return (outputs[0] - outputs[1]).abs().max().item()

    assert spread(hidden_dropout=0.0, attention_dropout=0.0) == 0.0
    assert spread(hidden_dropout=0.1, attention_dropout=0.0) > 0.01
    assert spread(hidden_dropout=0.0, attention_dropout=0.1) > 0.01


def test_initial_values_are_those_of_the_stock_class():
    """Deviation and cut-off of each kind of matrix; LayerNorm 1, biases 0."""
    sizes = {"hidden_size": 128, "intermediate_size": 192, "vocab_size": 512}
    model = make_model(modern_config(initializer_range=0.02, **sizes).model)
    converted = stock_model(model)
    theirs = type(converted)(converted.config)
    _, expected = from_hugging_face(theirs.config, theirs.state_dict())
    for name, parameter in model.named_parameters():
        other = expected[name]
        assert parameter.std(correction=0).item() == pytest.approx(other.std(correction=0).item(), rel=0.05), name
        assert parameter.abs().max().item() == pytest.approx(other.abs().max().item(), rel=0.05), name


def test_muon_sees_the_matrices_that_are_stacked_in_one_parameter():
    """Queries, keys and values; the feed-forward's two first matrices."""
    stacked = block_matrices(make_modern(num_layers=2))
    assert {name.removeprefix("encoder.blocks.1."): count for name, count in stacked.items() if ".1." in name} == {
        "qkv_weight": 3,
        "attention_output_weight": 1,
        "ffn_up_weight": 2,
        "ffn_down_weight": 1,
    }
    groups = parameter_groups(make_modern(num_layers=2), 0.1, muon=True)
    assert [len(group["params"]) for group in groups] == [8, 2, 3 + 3 + 1]


def test_counted_flops_are_those_of_three_feed_forward_matrices_and_of_the_window():
    """By hand for a global and a local block, on whole sequences and on a random half of their tokens."""
    config = modern_config(num_layers=2).model
    model, lengths = ModelFlops(config, SEQ), np.array([SEQ, 5])
    weights = 6.0 * (4 * 32 * 32 + 3 * 32 * 48)
    within = [sum(abs(i - j) <= WINDOW // 2 for i in range(n) for j in range(n)) for n in lengths]
    assert within == [SEQ * 9 - 20, 25]
    assert model.block(lengths, 0) == weights * (SEQ + 5) + 12 * 32 * (SEQ**2 + 25)
    assert model.block(lengths, 1) == weights * (SEQ + 5) + 12 * 32 * sum(within)
    assert model.block(lengths) == (model.block(lengths, 0) + model.block(lengths, 1)) / 2
    half, whole = np.array([SEQ // 2]), np.array([SEQ])
    generator = np.random.default_rng(0)
    drawn = [np.sort(generator.permutation(SEQ)[: SEQ // 2]) for _ in range(400)]
    pairs = np.mean([(np.abs(kept[:, None] - kept[None]) <= WINDOW // 2).sum() for kept in drawn])
    assert model.attention(half, 1, whole) == pytest.approx(12 * 32 * pairs, rel=0.01)


def test_a_window_as_long_as_the_sequence_is_global_attention():
    theta = {"global_rope_theta": 500.0, "local_rope_theta": 500.0}
    wide = make_modern(local_attention=2 * SEQ, **theta)
    everywhere = make_modern(global_attn_every_n_layers=1, **theta)
    batch = modern_batch()
    inputs = batch["input_ids"], batch["token_type_ids"], batch["attention_mask"]
    with torch.no_grad():
        assert torch.equal(wide.encoder(*inputs), everywhere.encoder(*inputs))


def test_a_bert_configuration_becomes_modernbert_s_by_one_key():
    run = load_config("bert_base_pld_128.json", ["model.architecture=modernbert"])
    assert (run.model.hidden_size, run.model.num_layers, run.model.num_attention_heads) == (768, 22, 12)
    assert (run.model.intermediate_size, run.model.max_position_embeddings) == (1152, 8192)
    assert (run.model.local_attention, run.model.global_attn_every_n_layers) == (128, 3)
    assert (run.model.hidden_dropout, run.model.layer_norm_eps) == (0.0, 1e-5)
    assert run.model.next_sentence_prediction is False
    large = load_config("bert_large_pld_128.json", ["model.architecture=modernbert"]).model
    sizes = large.hidden_size, large.num_layers, large.num_attention_heads, large.intermediate_size
    assert sizes == (1024, 28, 16, 2624)
    assert load_config(run.as_json()).model == run.model


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.normalization=post", "model.normalization: 'post'; must be 'pre' with architecture 'modernbert'"),
        ("model.next_sentence_prediction=true", "next_sentence_prediction: True; must be false or 'auto' with arch"),
        ("model.num_attention_heads=256", "rotary positions need an even width of each of the 256 heads"),
        ("model.local_attention=1", "model.local_attention: 1; must be >= 2"),
        ("model.architecture=neobert", "model.architecture: 'neobert'; must be one of bert, modernbert"),
    ],
)
def test_what_contradicts_the_architecture_is_refused_in_one_line(override, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config("bert_base_pld_128.json", ["model.architecture=modernbert", override])
    assert "\n" not in str(error.value)


def test_keys_of_another_architecture_are_named():
    with pytest.raises(ConfigError, match="model.local_attention: 64; only for model.architecture 'modernbert'"):
        load_config("bert_base_pld_128.json", ["model.local_attention=64"])
    given = ["model.architecture=modernbert", "model.position_initialization=sinusoidal"]
    run = load_config("bert_base_pld_128.json", given)
    assert "model.position_initialization: no effect with architecture 'modernbert'" in run.notices
    assert run.model.position_initialization == "normal"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_bias": True}, "norm_bias: True; must be False here"),
        ({"embedding_dropout": 0.1}, "embedding_dropout: 0.1; must be 0.0 here"),
        ({"layer_types": ["sliding_attention"] * 5}, "layer_types: must be 'full_attention' in the first and every"),
    ],
)
def test_unsupported_options_of_the_stock_class_are_refused(change, message):
    theirs = stock_model(make_modern())
    config = transformers.ModernBertConfig(**{**theirs.config.to_dict(), **change})
    with pytest.raises(ValueError, match=message):
        from_hugging_face(config, theirs.state_dict())
