"""Blocks compiled by torch.compile: the same numbers as the reference, and one graph for all gates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modern_model import LENGTHS, ROWS, SEQ, make_modern, modern_batch
from tiny_model import fixed_gates, gradients, make_model

from bert_pld.model import allow_graphs, use_backend
from bert_pld.pld import Schedule, draw_gates


def test_compiled_backend_equals_the_reference():
    reference, compiled = make_model(), make_model()
    use_backend(compiled, "compiled", "cpu")
    for pattern, scale in (([1, 1, 1, 1], 1.0), ([1, 0, 1, 1], 1.3), ([0, 1, 1, 0], 1.9)):
        loss, expected = gradients(reference, fixed_gates(pattern, scale))
        loss_compiled, actual = gradients(compiled, fixed_gates(pattern, scale))
        assert loss_compiled == pytest.approx(loss, rel=1e-5)
        for name in expected:
            assert torch.allclose(actual[name], expected[name], atol=1e-5, rtol=1e-4), name


def test_compiled_block_is_one_graph_for_all_scales():
    """The scale changes at every step: one graph per scale would soon exceed the limit and run eagerly."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    model = make_model(hidden_dropout=0.1, attention_dropout=0.1)
    for block in model.encoder.blocks:
        block.compile(dynamic=True, backend=counter, fullgraph=True)
    for step in range(12):
        gradients(model, fixed_gates([1, 1, 0, 1], scale=1.0 + 0.1 * step))
    assert counter.frame_count <= 2


def test_modernbert_s_blocks_are_few_graphs_and_none_runs_eagerly():
    """First, global and local block; whole sequences and tokens, both with and without padding; and evaluation."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    allow_graphs()
    eager, model = make_modern(), make_modern()
    for block in model.encoder.blocks:
        block.compile(dynamic=True, backend=counter, fullgraph=True)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for step in range(4):
            batch = modern_batch(seed=step, padded=step % 2 == 0)
            lengths = LENGTHS if step % 2 == 0 else np.full(ROWS, SEQ)
            gates = draw_gates(
                Schedule(5, 0.4 + 0.05 * step, temporal="constant", depth="uniform"), granularity="token", seed=0,
                step=step, rows=ROWS, lengths=lengths, padded_length=SEQ,
            )  # fmt: skip
            for chosen in (gates, None):
                expected = eager.train()(**batch, gates=chosen)["loss"]
                loss = model.train()(**batch, gates=chosen)["loss"]
                torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
                loss.backward()
            with torch.no_grad():
                model.eval()(**batch)
    assert counter.frame_count <= 24
