"""Captured blocks compute what ordinary ones do, step by step; here a capture is a function that is called again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from called_again import capture_blocks
from modern_model import make_modern, modern_batch
from tiny_model import ROWS, SEQ, drawn_gates, fixed_gates, make_batch, make_model, step_of_sgd

from bert_pld.model import use_backend
from bert_pld.pld import Schedule, draw_gates

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted kernels only"),
    pytest.mark.usefixtures("few_programs"),
]

FULL = {"bert": make_batch(padded=False), "modernbert": modern_batch(padded=False)}


def ordinary(architecture="bert", **options):
    options = {"num_layers": 3, "hidden_dropout": 0.2, "attention_dropout": 0.2, **options}
    model = (make_modern if architecture == "modernbert" else make_model)(**options).train()
    use_backend(model, "triton", "cpu")
    return model


def captured(*arguments, **options):
    model = ordinary(*arguments, **options)
    return model, capture_blocks(model)


def train(model, steps, batch, recorder=None):
    """Take a step of SGD for each list of gates, one for each of its micro-batches; return losses and gradients."""
    found, micro_batches = [], 0
    for step in steps:
        model.zero_grad(set_to_none=True)
        for gates in step:
            if recorder is not None:
                recorder.poison()
            torch.manual_seed(micro_batches := micro_batches + 1)
            loss = model(**batch, gates=gates)["loss"]
            loss.backward()
            found.append(loss.detach())
        found += step_of_sgd(model)
    return found


def assert_same_bits(actual, expected):
    assert len(actual) == len(expected)
    assert all(torch.equal(*both) for both in zip(actual, expected, strict=True))


def steps_of(*patterns):
    """Return steps of one micro-batch each, with different scales."""
    return [[fixed_gates(pattern, 1.5 + 0.25 * step)] for step, pattern in enumerate(patterns)]


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("bert", {}), ("bert", {"normalization": "post"}), ("modernbert", {})],
    ids=["pre", "post", "modernbert"],
)
def test_replayed_blocks_give_the_same_bits_with_and_without_the_block_between(architecture, options):
    steps = steps_of([1, 1, 1, 1], [1, 0, 1, 1])
    model, graphs = captured(architecture, num_layers=4, **options)
    found = train(model, steps, FULL[architecture], graphs)
    assert_same_bits(found, train(ordinary(architecture, num_layers=4, **options), steps, FULL[architecture]))
    assert graphs.replays == [2, 1, 2, 2, 1, 2]


def test_gradients_of_the_micro_batches_of_a_step_add_up():
    steps = [[None, None]]
    model, graphs = captured(num_layers=2)
    assert_same_bits(train(model, steps, FULL["bert"], graphs), train(ordinary(num_layers=2), steps, FULL["bert"]))
    assert graphs.replays == [2, 2]


def test_first_block_that_runs_where_it_was_captured_after_another_runs_as_usual():
    steps = steps_of([0, 1, 1], [0, 0, 1])
    model, graphs = captured()
    assert_same_bits(train(model, steps, FULL["bert"], graphs), train(ordinary(), steps, FULL["bert"]))
    assert graphs.replays == [0, 0, 0, 0]


def check_runs_as_usual(model, gates, batch):
    other = ordinary(num_layers=2)
    other.load_state_dict(model.state_dict())
    assert_same_bits(train(model, [[gates]], batch), train(other, [[gates]], batch))


def padded_batch(lengths):
    """A batch with these lengths, whose masked positions are tokens."""
    batch, lengths = make_batch(padded=False), np.array(lengths)
    mask = torch.arange(SEQ) < torch.from_numpy(lengths)[:, None]
    positions = batch["masked_positions"]
    first_of_row = positions // SEQ * SEQ
    positions = torch.where(mask.flatten()[positions], positions, first_of_row)
    return {**batch, "attention_mask": mask, "sequence_lengths": lengths, "masked_positions": positions}


PADDED = [padded_batch(lengths) for lengths in ([16, 12, 9, 16], [15, 14, 16, 8], [13, 13, 13, 13])]


def gates_by_token(step, batch, num_layers=3):
    """Gates at a constant share for a batch with or without padding."""
    rows, seq = batch["input_ids"].shape
    lengths = batch.get("sequence_lengths")
    lengths = np.full(rows, seq) if lengths is None else lengths
    schedule = Schedule(num_layers, 0.5, temporal="constant")
    return draw_gates(schedule, granularity="token", seed=1, step=step, rows=rows, lengths=lengths, padded_length=seq)


def steps_with_padding(model, gates, recorder=None):
    """Take a step of SGD on each padded batch; return losses and gradients."""
    return [
        one.double() for batch, own in zip(PADDED, gates, strict=True) for one in train(model, [[own]], batch, recorder)
    ]


@pytest.mark.parametrize("normalization", ["pre", "post"])
@pytest.mark.parametrize("dropping", ["all", "batch"])
def test_padded_micro_batches_are_filled_and_replayed(dropping, normalization):
    """Fillers change the order of sums, and which numbers attention's dropout draws."""
    gates = [None] * 3 if dropping == "all" else [fixed_gates(one, 1.5) for one in ([1, 1, 1], [1, 0, 1], [1, 1, 1])]
    options = {"attention_dropout": 0.0, "normalization": normalization}
    model, graphs = captured(**options)
    found, expected = steps_with_padding(model, gates, graphs), steps_with_padding(ordinary(**options), gates)
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in zip(found, expected, strict=True))
    assert graphs.replays == ([3, 3, 3, 3] if dropping == "all" else [3, 2, 2, 3])


def test_padded_micro_batches_are_replayed_where_blocks_run_on_some_tokens():
    gates = [gates_by_token(step, batch) for step, batch in enumerate(PADDED)]
    model, graphs = captured(attention_dropout=0.0)
    found = steps_with_padding(model, gates, graphs)
    expected = steps_with_padding(ordinary(attention_dropout=0.0), gates)
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in zip(found, expected, strict=True))
    assert graphs.replays == [3, 3, 3, 3]


def test_micro_batches_that_cannot_be_filled_leave_the_graphs_of_others_as_they_are():
    """Among them one without padding, in the middle of a run by token."""
    batches = [PADDED[0], padded_batch([16, 8, 4, 2]), FULL["bert"], PADDED[1]]
    model, graphs = captured(attention_dropout=0.0)
    for step, batch in enumerate(batches):
        train(model, [[gates_by_token(step, batch)]], batch, graphs)
    assert graphs.replays == [2, 2, 2, 2]


def test_micro_batches_with_much_padding_other_sizes_and_evaluation_run_as_usual_between_replays():
    model, graphs = captured(num_layers=2)
    full = FULL["bert"]
    few = {name: one[: ROWS // 2] if one is not None and len(one) == ROWS else one for name, one in full.items()}
    few["masked_positions"] = few["masked_positions"] % (ROWS * SEQ // 2)
    model.encoder.graphs.filling(model.encoder, None, np.full(ROWS, SEQ), SEQ)
    train(model, [[None]], full)
    for batch in (padded_batch([16, 8, 4, 2]), few):
        check_runs_as_usual(model, None, batch)
    with torch.no_grad():
        model(**full)
    model.eval()(**full)["loss"].backward()
    assert graphs.replays == [1, 1]
    model.train()(**full)["loss"].backward()
    assert graphs.replays == [2, 2]


@pytest.mark.parametrize(
    ("granularity", "options"),
    [
        ("sample", {}),
        pytest.param("token", {}, marks=pytest.mark.thorough),
        pytest.param("token", {"normalization": "post"}, marks=pytest.mark.thorough),
    ],
    ids=["sample", "token", "token-post"],
)
def test_graphs_are_given_up_when_a_block_runs_on_some_tokens_only(granularity, options):
    model, graphs = captured(num_layers=2, **options)
    train(model, [[None]], FULL["bert"])
    gates = drawn_gates(granularity, num_layers=2, padded=False)
    other = ordinary(num_layers=2, **options)
    other.load_state_dict(model.state_dict())
    assert_same_bits(train(model, [[gates]], FULL["bert"]), train(other, [[gates]], FULL["bert"]))
    assert model.encoder.graphs.memory is None
    train(model, [[None]], FULL["bert"])
    assert graphs.replays == [1, 1]


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_replayed_blocks_run_on_the_tokens_of_their_own_micro_batch(architecture):
    steps = [[gates_by_token(step, FULL[architecture])] for step in range(3)]
    model, graphs = captured(architecture, num_layers=3)
    found = train(model, steps, FULL[architecture], graphs)
    assert_same_bits(found, train(ordinary(architecture, num_layers=3), steps, FULL[architecture]))
    assert graphs.replays == [3, 3, 3, 3]


def test_dense_warm_up_dropping_by_token_and_dense_finish_are_captured_in_turn():
    """The second shapes are captured when they come the second time in a row, the third ones the fourth time."""
    dropping = [[drawn_gates("token", num_layers=2, step=step, padded=False)] for step in range(3)]
    steps = [[None], *dropping, *[[None]] * 5]
    model, graphs = captured(num_layers=2)
    assert_same_bits(train(model, steps, FULL["bert"], graphs), train(ordinary(num_layers=2), steps, FULL["bert"]))
    assert graphs.replays == [1, 1, 2, 2, 2, 2]


def test_replays_draw_new_dropout_from_a_new_seed_and_the_same_from_the_same():
    model, graphs = captured(num_layers=2)

    def loss(seed):
        torch.manual_seed(seed)
        return model(**FULL["bert"])["loss"].item()

    first, second, again = loss(1), loss(2), loss(1)
    assert first == again != second
    assert graphs.replays == [3, 0]


def test_capturing_leaves_random_generators_as_they_are():
    model, _ = captured(num_layers=2)
    results = []
    for one in (model, ordinary(num_layers=2)):
        torch.manual_seed(3)
        one(**FULL["bert"])
        results.append(torch.rand(4))
    assert torch.equal(*results)


def test_backward_after_the_next_forward_is_an_error_of_one_line():
    model, _ = captured(num_layers=2)
    first, second = model(**FULL["bert"])["loss"], model(**FULL["bert"])["loss"]
    with pytest.raises(RuntimeError, match=r"^model\.cuda_graphs: a block's backward pass after its next forward.*$"):
        first.backward()
    second.backward()
    with pytest.raises(RuntimeError):
        second.backward()


def test_parameters_that_moved_are_captured_again():
    model, graphs = captured(num_layers=2)
    train(model, [[None]], FULL["bert"])
    other = ordinary(num_layers=2)
    other.load_state_dict(model.state_dict())
    for one in model.parameters():
        one.data = one.data.clone()
    assert_same_bits(train(model, [[None]], FULL["bert"]), train(other, [[None]], FULL["bert"]))
    assert graphs.replays == [1, 1, 1, 1]


@pytest.mark.parametrize("kernels", ["triton", "reference"])
def test_graphs_are_refused_in_one_line_where_they_cannot_run(kernels):
    model = make_model(cuda_graphs=True)
    with pytest.raises(
        ValueError, match=r"^model\.cuda_graphs: true needs an NVIDIA GPU and .* the device is cpu, .*$"
    ):
        use_backend(model, kernels, "cpu")
