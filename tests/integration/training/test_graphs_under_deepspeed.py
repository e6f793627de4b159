"""Captured blocks under DeepSpeed: its hooks reduce their gradients as those of ordinary blocks."""

from __future__ import annotations

import pytest
import torch
from called_again import capture_blocks
from runs import small_config
from tiny_model import make_batch

from bert_pld.config import load_config
from bert_pld.model import BertForPreTraining, use_backend
from bert_pld.training.engine import make_engine

pytestmark = [
    pytest.mark.usefixtures("process_group"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests interpreted kernels"),
]


def losses_and_weights(stage, with_graphs, steps=3):
    """Return the losses of each micro-batch and the weights after each step, and the numbers of replays."""
    config = load_config(
        small_config(
            train_micro_batch_size_per_gpu=4,
            gradient_accumulation_steps=2,
            zero_optimization={"stage": stage},
            bf16={"enabled": True},
            model={"vocab_size": 64, "next_sentence_prediction": True, "kernels": "triton"},
        )
    )
    torch.manual_seed(0)
    model = BertForPreTraining(config.model)
    use_backend(model, "triton", "cpu")
    graphs = capture_blocks(model) if with_graphs else None
    engine, found = make_engine(config, model), []
    for step in range(steps):
        for micro_step in range(2):
            torch.manual_seed(10 * step + micro_step)
            loss = engine(**make_batch(seed=step, padded=False))["loss"]
            engine.backward(loss)
            engine.step()
            found.append(loss.detach())
        found += [one.detach().clone() for one in model.parameters()]
    return found, graphs.replays if graphs else []


@pytest.mark.parametrize("stage", [1, *(pytest.param(stage, marks=pytest.mark.thorough) for stage in (0, 2))])
def test_captured_blocks_train_to_the_same_bits_at_every_zero_stage(stage):
    found, replays = losses_and_weights(stage, with_graphs=True)
    expected, _ = losses_and_weights(stage, with_graphs=False)
    assert all(torch.equal(*both) for both in zip(found, expected, strict=True))
    assert len(replays) == 4
    assert min(replays) > 0
