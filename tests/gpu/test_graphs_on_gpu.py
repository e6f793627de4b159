"""CUDA graphs of blocks on a GPU: the bits of ordinary launches, new dropout in every replay, and exact resume."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from runs import read_metrics, run_pretrain, small_config, write_corpus
from tiny_model import fixed_gates, step_of_sgd

from bert_pld.checkpoint.format import list_checkpoints
from bert_pld.config import load_config
from bert_pld.model import make_model, use_backend
from bert_pld.pld import Schedule, draw_gates

pytestmark = pytest.mark.gpu

ROWS, SEQ = 16, 128
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
ARCHITECTURES = {
    "pre": {"architecture": "bert", "next_sentence_prediction": False},
    "post": {"architecture": "bert", "next_sentence_prediction": False, "normalization": "post"},
    "modernbert": {"architecture": "modernbert", "local_attention": 64},
}
STEPS = [None, None, [1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1]]
"""Blocks that run in each step; None: all, without gates."""


def base_model(cuda_graphs, **options):
    model = {"preset": "base", "num_layers": 4, "vocab_size": 8192, "kernels": "triton", **DROPOUT, **options}
    torch.manual_seed(0)
    made = make_model(load_config({"model": {**model, "cuda_graphs": cuda_graphs}, "data": {"seq_length": SEQ}}).model)
    use_backend(made, "triton", "cuda")
    return made.to("cuda", torch.bfloat16).train()


def full_batch(rows=ROWS):
    generator = torch.Generator().manual_seed(0)
    positions = (torch.rand(rows * SEQ, generator=generator) < 0.15).nonzero().squeeze(1)
    batch = {
        "input_ids": torch.randint(5, 8192, (rows, SEQ), generator=generator),
        "token_type_ids": torch.zeros(rows, SEQ, dtype=torch.int64),
        "masked_positions": positions,
        "masked_labels": torch.randint(5, 8192, (len(positions),), generator=generator),
    }
    return {**{name: value.cuda() for name, value in batch.items()}, "attention_mask": None}


def padded_batch(step):
    """A batch whose rows have other lengths in each step; a quarter of the tokens is masked."""
    lengths = np.random.default_rng(step).integers(SEQ // 2, SEQ + 1, ROWS)
    mask = torch.arange(SEQ) < torch.from_numpy(lengths)[:, None]
    positions = mask.flatten().nonzero().squeeze(1)[::4]
    labels = torch.randint(5, 8192, (len(positions),), generator=torch.Generator().manual_seed(step))
    batch = {**full_batch(), "masked_positions": positions, "masked_labels": labels, "attention_mask": mask}
    return {**{name: one.cuda() for name, one in batch.items() if one is not None}, "sequence_lengths": lengths}


def token_gates(step, micro_step=0, lengths=None, same_tokens=False):
    """Gates at a constant share of 0.5 in the last block; with the same tokens, in every block."""
    lengths = np.full(ROWS, SEQ) if lengths is None else lengths
    schedule = Schedule(4, 0.5, temporal="constant", depth="uniform" if same_tokens else "linear")
    shape = {"rows": ROWS, "padded_length": SEQ, "lengths": lengths, "device": "cuda", "same_tokens": same_tokens}
    return draw_gates(schedule, granularity="token", seed=1, step=step, micro_step=micro_step, **shape)


def train(model, steps=STEPS, micro_batches=2, by_token=None):
    """Return the losses, and of each step the gradients, which its micro-batches add up; weights change between."""
    found = []
    for step, pattern in enumerate(steps):
        gates = None if pattern is None else fixed_gates(pattern, 1.25 + step / 8)
        model.zero_grad(set_to_none=True)
        for micro_step in range(micro_batches):
            torch.manual_seed(10 * step + micro_step)
            if by_token:
                gates = token_gates(step, micro_step, same_tokens=by_token == "same")
            loss = model(**full_batch(), gates=gates)["loss"]
            loss.backward()
            found.append(loss.detach())
        found += step_of_sgd(model)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_replayed_blocks_give_the_bits_of_ordinary_launches(architecture):
    graphed, plain = (train(base_model(on, **ARCHITECTURES[architecture])) for on in (True, False))
    assert len(graphed) == len(plain)
    assert all(torch.equal(*both) for both in zip(graphed, plain, strict=True))


@pytest.mark.parametrize("architecture", ["pre", "modernbert"])
@pytest.mark.parametrize("tokens", ["own", "same"])
def test_replayed_blocks_on_some_tokens_give_the_bits_of_ordinary_launches(tokens, architecture):
    models = [base_model(on, **ARCHITECTURES[architecture]) for on in (True, False)]
    graphed, plain = (train(model, [None] * 3, by_token=tokens) for model in models)
    assert models[0].encoder.graphs.memory is not None
    assert all(torch.equal(*both) for both in zip(graphed, plain, strict=True))


def padded_gates(granularity, step, batch):
    if granularity == "token":
        return token_gates(step, lengths=batch["sequence_lengths"])
    return None if granularity == "none" else fixed_gates([1, step != 1, 1, 1], 1.5)


PADDED = [(pre_or_post, granularity) for pre_or_post in ("pre", "post") for granularity in ("none", "batch", "token")]
PADDED.remove(("post", "token"))  # runs as usual


@pytest.mark.parametrize(("normalization", "granularity"), PADDED)
def test_filled_micro_batches_are_replayed_with_the_bits_of_ordinary_launches(normalization, granularity):
    found = []
    for captures in (True, False):
        model, bits = base_model(True, **ARCHITECTURES[normalization]), []
        if not captures:
            model.encoder.graphs.start = lambda *_: False
        for step in range(3):
            batch = padded_batch(step)
            torch.manual_seed(step)
            model.zero_grad(set_to_none=True)
            loss = model(**batch, gates=padded_gates(granularity, step, batch))["loss"]
            loss.backward()
            bits += [loss.detach(), *step_of_sgd(model)]
        assert (model.encoder.graphs.memory is not None) is captures
        found.append(bits)
    assert all(torch.equal(*both) for both in zip(*found, strict=True))


@pytest.mark.parametrize(("normalization", "granularity"), PADDED)
def test_fillers_change_losses_and_gradients_by_no_more_than_the_order_of_sums(normalization, granularity):
    options = {**ARCHITECTURES[normalization], "attention_dropout": 0.0}
    filled, plain = (base_model(on, **options) for on in (True, False))
    for step in range(3):
        batch, losses = padded_batch(step), []
        for model in (filled, plain):
            torch.manual_seed(step)
            model.zero_grad(set_to_none=True)
            loss = model(**batch, gates=padded_gates(granularity, step, batch))["loss"]
            loss.backward()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=2e-3)
        # A dropped block has no gradient.
        of_filled, of_plain = ([p.grad for p in model.parameters() if p.grad is not None] for model in (filled, plain))
        pairs = [(one.float(), other.float()) for one, other in zip(of_filled, of_plain, strict=True)]
        difference = torch.stack([(one - other).norm() for one, other in pairs]).norm()
        assert difference < 0.02 * torch.stack([other.norm() for _, other in pairs]).norm()


def test_replays_draw_new_dropout_from_a_new_seed_and_the_same_from_the_same():
    model = base_model(True, **ARCHITECTURES["pre"])

    def loss(seed):
        torch.manual_seed(seed)
        return model(**full_batch())["loss"].item()

    first, second, again = loss(1), loss(2), loss(1)
    assert first == again != second


def test_other_shapes_and_evaluation_run_as_usual_between_replays():
    graphed, plain = (base_model(on, **ARCHITECTURES["pre"]) for on in (True, False))
    for model in (graphed, plain):
        train(model, [None])
    losses = []
    for model in (graphed, plain):
        torch.manual_seed(5)
        few = model(**full_batch(ROWS // 2))["loss"]
        few.backward()
        with torch.no_grad():
            evaluated = model.eval()(**full_batch())["loss"]
        losses.append(
            [few.item(), evaluated.item(), *(one.item() for one in train(model.train(), [None]) if one.dim() == 0)]
        )
    assert losses[0] == losses[1]


def test_fp8_products_are_captured_too():
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs FP8")
    graphed, plain = (train(base_model(on, fp8=True, **ARCHITECTURES["pre"])) for on in (True, False))
    assert all(torch.equal(*both) for both in zip(graphed, plain, strict=True))


def test_replays_wait_for_nothing_and_keep_their_memory():
    model = base_model(True, **ARCHITECTURES["pre"])
    batch = full_batch()

    def one_step():
        model.zero_grad(set_to_none=True)
        model(**batch)["loss"].backward()

    for _ in range(3):
        one_step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            one_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_reserved() == before


def test_memory_grows_by_at_most_the_blocks_gradients_and_a_block():
    peaks = {}
    for on in (False, True):
        torch.cuda.empty_cache()
        started = torch.cuda.memory_reserved()
        model = base_model(on, **ARCHITECTURES["pre"])
        train(model, [None, None])
        peaks[on] = torch.cuda.max_memory_reserved() - started
        block_bytes = 2 * sum(one.numel() for one in model.encoder.blocks.parameters())
        del model
        torch.cuda.reset_peak_memory_stats()
    stored = 20 * ROWS * SEQ * 768 * 2  # of one block for its backward pass
    assert peaks[True] <= peaks[False] + block_bytes + 2 * stored + 2**28


@pytest.mark.parametrize(
    ("stage", "granularity", "padding"),
    [(0, "batch", 0), (1, "batch", 0), (2, "batch", 0), (1, "token", 0), (1, "token", 8)],
)
def test_runs_with_graphs_repeat_the_losses_of_runs_without_and_resume_bitwise(stage, granularity, padding, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", padding=padding)

    def losses(name, cuda_graphs):
        # With fillers, attention's dropout draws other numbers.
        attention = {"attention_dropout": 0.0} if padding else {}
        model = {"kernels": "triton", "cuda_graphs": cuda_graphs, **attention}
        settings = {"progressive_layer_drop": {"granularity": granularity}, "bf16": {"enabled": True}}
        config = small_config(model=model, zero_optimization={"stage": stage}, **settings)
        run_pretrain(config, corpus, tmp_path / name)
        return np.array(read_metrics(tmp_path / name)).tolist()

    whole = losses("graphs", True)
    # Fillers change the number of rows, and with it the order in which matrix products add.
    assert whole == (pytest.approx(losses("plain", False), rel=0.03) if padding else losses("plain", False))
    for checkpoint in list_checkpoints(tmp_path / "graphs" / "checkpoints")[:2]:
        shutil.rmtree(checkpoint)
    assert losses("graphs", True) == whole
