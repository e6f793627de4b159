"""The whole model with compiled Triton kernels on a GPU, against eager torch on the GPU."""

from __future__ import annotations

import pytest
import torch
from tiny_model import drawn_gates, fixed_gates, make_batch, make_model

from bert_pld.config import load_config
from bert_pld.kernels.sorted_sum import sum_rows_by_id
from bert_pld.model import BertForPreTraining, use_backend
from bert_pld.pld import BlockGate, Schedule, draw_gates

pytestmark = pytest.mark.gpu

BASE = {"preset": "base", "num_layers": 4, "vocab_size": 8192, "next_sentence_prediction": True}


def sample_gates(device):
    fixed = {"scale": 1.5, "keep_probability": 0.67}
    rows_of_blocks = [torch.tensor(rows, device=device) for rows in ([0, 1, 3], [2], [], [1, 2])]
    return [BlockGate(keep=bool(len(rows)), **fixed, rows=rows) for rows in rows_of_blocks]


def on_gpu(batch):
    return {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def step(model, gates, batch, dtype=torch.float32):
    model = model.to("cuda", dtype).train()
    outputs = model(**on_gpu(batch), gates=gates)
    outputs["loss"].backward()
    return outputs["loss"].item(), {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}


def relative_error(actual, expected):
    """Return the relative error of all gradients together."""
    assert actual.keys() == expected.keys()
    total = sum((actual[n] - expected[n]).square().sum() for n in expected).sqrt()
    return (total / sum(g.square().sum() for g in expected.values()).sqrt()).item()


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize("granularity", ["none", "batch", "sample", "token"])
@pytest.mark.parametrize("normalization", ["pre", "post"])
def test_small_model_in_fp32_has_the_loss_and_gradients_of_eager(normalization, granularity, padded):
    results = []
    for backend in ("reference", "triton"):
        model = make_model(normalization=normalization)
        use_backend(model, backend, "cuda")
        gates = {
            "none": None,
            "batch": fixed_gates([1, 0, 1, 1], 1.5),
            "sample": sample_gates("cuda"),
            "token": drawn_gates("token", padded=padded, device="cuda"),
        }[granularity]
        results.append(step(model, gates, make_batch(padded=padded)))
    (loss, expected), (fused_loss, actual) = results
    assert fused_loss == pytest.approx(loss, rel=1e-5)
    assert relative_error(actual, expected) < 1e-4


def base_batch(rows=16, seq=128, padded=True):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, seq + 1, (rows,), generator=generator) if padded else torch.full((rows,), seq)
    mask = torch.arange(seq) < lengths[:, None]
    positions = (mask & (torch.rand(rows, seq, generator=generator) < 0.15)).flatten().nonzero().squeeze(1)
    return {
        "input_ids": torch.randint(5, 8192, (rows, seq), generator=generator),
        "token_type_ids": torch.zeros(rows, seq, dtype=torch.int64),
        "attention_mask": mask if padded else None,
        "masked_positions": positions,
        "masked_labels": torch.randint(5, 8192, (len(positions),), generator=generator),
        "next_sentence_labels": torch.randint(0, 2, (rows,), generator=generator),
        "sequence_lengths": lengths.numpy(),
    }


def base_gates(granularity, step, padded):
    lengths = base_batch(padded=padded)["sequence_lengths"]
    return draw_gates(
        Schedule(4, 0.5, temporal="constant"),
        granularity=granularity, seed=3, step=step, rows=16, lengths=lengths, padded_length=128, device="cuda",
    )  # fmt: skip


def base_model(backend, **options):
    config = load_config({"model": {**BASE, "hidden_dropout": 0.0, "attention_dropout": 0.0, **options}})
    torch.manual_seed(0)
    model = BertForPreTraining(config.model)
    use_backend(model, backend, "cuda")
    return model


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("granularity", ["batch", "sample", "token"])
def test_errors_at_base_width_in_16_bits_are_no_larger_than_eager_s(granularity, dtype, padded):
    gates = base_gates(granularity, 1, padded)
    loss, exact = step(base_model("reference"), gates, base_batch(padded=padded))
    eager_loss, eager = step(base_model("reference"), gates, base_batch(padded=padded), dtype)
    fused_loss, fused = step(base_model("triton"), gates, base_batch(padded=padded), dtype)
    assert abs(fused_loss - loss) <= 2 * abs(eager_loss - loss) + 2e-3
    assert relative_error(fused, exact) <= 1.5 * relative_error(eager, exact)


def test_recomputed_blocks_give_the_same_bits_under_dropout():
    results = []
    for checkpointing in (False, True):
        model = base_model("triton", activation_checkpointing=checkpointing, hidden_dropout=0.1, attention_dropout=0.1)
        torch.manual_seed(1)
        results.append(step(model, None, base_batch(), torch.bfloat16))
    (loss, plain), (loss_again, recomputed) = results
    assert loss == pytest.approx(loss_again, rel=1e-6)
    # FlashAttention's backward adds in a varying order, so the gradients are equal up to rounding.
    assert relative_error(recomputed, plain) < 1e-2


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize("granularity", ["sample", "token"])
def test_no_forward_or_backward_waits_for_the_device(granularity, padded):
    model = base_model("triton", hidden_dropout=0.1, attention_dropout=0.1).to("cuda", torch.bfloat16).train()
    batch = on_gpu(base_batch(padded=padded))

    def one_step(index):
        gates = base_gates(granularity, index, padded)
        model(**batch, gates=gates)["loss"].backward()

    for index in range(3):
        one_step(index)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        one_step(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("vocabulary", [30528, 131072])
def test_gradient_of_a_word_table_has_the_same_bits_again_and_the_sum_of_each_id(vocabulary):
    """32,768 tokens, of which a quarter have the same id."""
    generator = torch.Generator("cuda").manual_seed(0)
    ids = torch.randint(0, vocabulary, (32768,), generator=generator, device="cuda", dtype=torch.int32)
    ids[::4] = 103
    rows = torch.randn(len(ids), 768, generator=generator, device="cuda").bfloat16()
    table = sum_rows_by_id(rows, ids, vocabulary)
    exact = torch.zeros(vocabulary, 768, dtype=torch.float64, device="cuda").index_add_(0, ids.long(), rows.double())
    torch.testing.assert_close(table.double(), exact, rtol=2**-8, atol=1e-3)
    assert torch.equal(sum_rows_by_id(rows, ids, vocabulary), table)
