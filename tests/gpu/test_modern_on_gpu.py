"""ModernBERT with compiled Triton kernels and FlashAttention's window on a GPU, against eager torch on the GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bert_pld.config import load_config
from bert_pld.model import make_model, use_backend
from bert_pld.pld import Schedule, draw_gates

pytestmark = pytest.mark.gpu

ROWS, SEQ = 8, 256
LENGTHS = {True: np.array([256, 40, 180, 256, 90, 130, 30, 256]), False: np.full(ROWS, SEQ)}


def modern(backend, dtype, **options):
    """A global, two local and a global block of base width; the window is a quarter of the sequence."""
    model = {"architecture": "modernbert", "num_layers": 4, "vocab_size": 8192, "local_attention": 64, **options}
    torch.manual_seed(0)
    made = make_model(load_config({"model": model, "data": {"seq_length": SEQ}}).model)
    use_backend(made, backend, "cuda")
    return made.to("cuda", dtype).train()


def batch_of(padded):
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(SEQ) < torch.from_numpy(LENGTHS[padded])[:, None]
    masked = (mask & (torch.rand(ROWS, SEQ, generator=generator) < 0.15)).flatten().nonzero().squeeze(1)
    batch = {
        "input_ids": torch.randint(5, 8192, (ROWS, SEQ), generator=generator),
        "token_type_ids": torch.zeros(ROWS, SEQ, dtype=torch.int64),
        "attention_mask": mask if padded else None,
        "masked_positions": masked,
        "masked_labels": torch.randint(5, 8192, masked.shape, generator=generator),
    }
    on_gpu = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    return {**on_gpu, "sequence_lengths": LENGTHS[padded]}


def gates_of(granularity, padded, step=1):
    if granularity is None:
        return None
    return draw_gates(
        Schedule(4, 0.5, temporal="constant"), granularity=granularity, seed=3, step=step, rows=ROWS,
        lengths=LENGTHS[padded], padded_length=SEQ, device="cuda",
    )  # fmt: skip


def step(model, granularity, padded, **more):
    loss = model(**batch_of(padded), gates=gates_of(granularity, padded), **more)["loss"]
    loss.backward()
    return loss.item(), {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def error(actual, expected):
    assert actual.keys() == expected.keys()
    total = sum((actual[n] - expected[n]).square().sum() for n in expected).sqrt()
    return (total / sum(g.square().sum() for g in expected.values()).sqrt()).item()


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize("granularity", [None, "batch", "sample", "token"])
def test_gradients_equal_eager_s_in_fp32_and_are_as_close_in_bf16(granularity, padded):
    loss, exact = step(modern("reference", torch.float32), granularity, padded)
    fused_loss, fused = step(modern("triton", torch.float32), granularity, padded)
    assert fused_loss == pytest.approx(loss, rel=1e-5)
    assert error(fused, exact) < 1e-4
    eager_loss, eager = step(modern("reference", torch.bfloat16), granularity, padded)
    fused_loss, fused = step(modern("triton", torch.bfloat16), granularity, padded)
    assert abs(fused_loss - loss) <= 2 * abs(eager_loss - loss) + 2e-3
    assert error(fused, exact) <= 1.5 * error(eager, exact)


@pytest.mark.parametrize("granularity", [None, "token"])
def test_documents_in_a_row_see_themselves_alone(granularity):
    documents = np.concatenate([[length // 3, length - length // 3] for length in LENGTHS[True]])
    results = [
        step(modern(backend, torch.float32), granularity, True, document_lengths=documents)
        for backend in ("reference", "triton")
    ]
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert error(results[1][1], results[0][1]) < 1e-4


@pytest.mark.parametrize("granularity", ["sample", "token"])
def test_no_forward_or_backward_waits_for_the_device(granularity):
    model, batch = modern("triton", torch.bfloat16), batch_of(True)
    for index in range(4):
        gates = gates_of(granularity, True, index)
        if index == 3:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            model(**batch, gates=gates)["loss"].backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
