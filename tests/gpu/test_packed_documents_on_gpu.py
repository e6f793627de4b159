"""Rows of several documents on a GPU: variable-length attention with compiled kernels against eager torch's mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packed_documents import loss_and_gradients, make_packed_model, packed_batch, packed_gates

from bert_pld.config import load_config
from bert_pld.model import make_model, use_backend
from bert_pld.pld import Schedule, draw_gates

pytestmark = pytest.mark.gpu

ROWS, SEQ = 8, 256
architectures = pytest.mark.parametrize("architecture", ["bert", "modernbert"])


def documents(seed=0):
    """Lengths of the documents of full rows; some are so short that a block keeps none of their tokens."""
    generator, lengths = np.random.default_rng(seed), []
    for _ in range(ROWS):
        cuts = np.sort(generator.choice(np.arange(1, SEQ), generator.integers(1, 20), replace=False))
        lengths += np.diff([0, *cuts, SEQ]).tolist()
    return np.array(lengths)


def base_model(architecture, backend, dtype, **options):
    heads = {"next_sentence_prediction": False, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    if architecture == "modernbert":
        heads = {"local_attention": 64}
    model = {"architecture": architecture, "preset": "base", "num_layers": 4, "vocab_size": 8192, **heads, **options}
    torch.manual_seed(0)
    made = make_model(load_config({"model": model, "data": {"seq_length": SEQ}}).model)
    use_backend(made, backend, "cuda")
    return made.to("cuda", dtype).train()


def base_batch():
    generator = torch.Generator().manual_seed(0)
    masked = (torch.rand(ROWS * SEQ, generator=generator) < 0.15).nonzero().squeeze(1)
    return {
        "input_ids": torch.randint(5, 8192, (ROWS, SEQ), generator=generator).cuda(),
        "token_type_ids": torch.zeros(ROWS, SEQ, dtype=torch.int64, device="cuda"),
        "attention_mask": None,
        "masked_positions": masked.cuda(),
        "masked_labels": torch.randint(5, 8192, masked.shape, generator=generator).cuda(),
        "sequence_lengths": np.full(ROWS, SEQ),
        "document_lengths": documents(),
    }


def base_gates(granularity, step=1):
    sizes = {"rows": ROWS, "lengths": np.full(ROWS, SEQ), "padded_length": SEQ, "device": "cuda"}
    return draw_gates(Schedule(4, 0.5, temporal="constant"), granularity=granularity, seed=3, step=step, **sizes)


def relative_error(actual, expected):
    total = sum((actual[n].double() - expected[n].double()).square().sum() for n in expected).sqrt()
    return (total / sum(g.double().square().sum() for g in expected.values()).sqrt()).item()


@architectures
@pytest.mark.parametrize("rows", ["short", "short, full"])
@pytest.mark.parametrize("granularity", [None, "batch", "sample", "token"])
def test_small_model_in_fp32_has_the_loss_and_gradients_of_eager(architecture, rows, granularity):
    batch = {n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in packed_batch(rows).items()}
    gates = packed_gates(granularity, rows, device="cuda")
    models = [make_packed_model(architecture, backend, device="cuda") for backend in ("reference", "triton")]
    (loss, expected), (fused_loss, actual) = (loss_and_gradients(model, [batch], [gates]) for model in models)
    assert fused_loss == pytest.approx(loss, rel=1e-5)
    assert relative_error(actual, expected) < 1e-4


@architectures
@pytest.mark.parametrize("granularity", ["batch", "sample", "token"])
def test_errors_at_base_width_in_16_bits_are_no_larger_than_eager_s(architecture, granularity):
    batch, gates = base_batch(), base_gates(granularity)
    kinds = [("reference", torch.float32), ("reference", torch.bfloat16), ("triton", torch.bfloat16)]
    results = [loss_and_gradients(base_model(architecture, *kind), [batch], [gates]) for kind in kinds]
    (loss, exact), (eager_loss, eager), (fused_loss, fused) = results
    assert abs(fused_loss - loss) / loss <= 2 * abs(eager_loss - loss) / loss + 1e-3
    assert relative_error(fused, exact) <= 1.5 * relative_error(eager, exact)


@architectures
def test_changed_document_leaves_the_hidden_states_of_the_others_as_they_were(architecture):
    model, batch = base_model(architecture, "triton", torch.bfloat16).eval(), base_batch()
    lengths = {name: batch[name] for name in ("sequence_lengths", "document_lengths")}
    end = int(documents()[0])
    changed = batch["input_ids"].clone()
    changed[0, :end] = changed[0, :end] % 500 + 10
    with torch.no_grad():
        before = model.encoder(batch["input_ids"], batch["token_type_ids"], **lengths).flatten(0, 1)
        after = model.encoder(changed, batch["token_type_ids"], **lengths).flatten(0, 1)
    assert not torch.equal(before[:end], after[:end])
    assert torch.equal(before[end:], after[end:])


@architectures
@pytest.mark.parametrize("granularity", ["sample", "token"])
def test_no_forward_or_backward_waits_for_the_device(architecture, granularity):
    model, batch = base_model(architecture, "triton", torch.bfloat16), base_batch()

    def one_step(index):
        model(**batch, gates=base_gates(granularity, index))["loss"].backward()

    for index in range(3):
        one_step(index)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        one_step(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
