"""FLOPs of rows whose documents do not attend to each other."""

import json

import numpy as np
import pytest
from published_config import PUBLISHED_CONFIG

from bert_pld.config import load_config
from bert_pld.cost.flops import ModelFlops
from bert_pld.data.shards import Manifest, ShardAttributes
from bert_pld.plan import format_plan, make_plan
from bert_pld.pld import Schedule, draw_gates

LENGTHS, DOCUMENTS = np.array([100, 80]), np.array([60, 40, 10, 70])


def flops_of(architecture="bert", **options):
    sizes = {"hidden_size": 64, "num_layers": 6, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 64}
    model = {"architecture": architecture, "preset": None, **sizes, "next_sentence_prediction": False, **options}
    return ModelFlops(load_config({"model": model, "data": {"seq_length": 100}}).model, 100)


def test_attention_counts_the_squares_of_the_documents():
    model = flops_of()
    saved = 12 * 64 * ((LENGTHS**2).sum() - (DOCUMENTS**2).sum())
    assert model.block(LENGTHS) - model.block(LENGTHS, documents=DOCUMENTS) == pytest.approx(saved)
    assert model.gated_blocks(LENGTHS, None, documents=DOCUMENTS) == 6 * model.block(LENGTHS, documents=DOCUMENTS)


def test_local_attention_is_within_the_window_and_the_document():
    model = flops_of("modernbert", local_attention=16)
    position = [np.arange(n) for n in DOCUMENTS]
    pairs = sum((np.abs(p[:, None] - p) <= 8).sum() for p in position)
    assert model.attention(DOCUMENTS, 1) == pytest.approx(12 * 64 * pairs)


@pytest.mark.parametrize("granularity", ["batch", "sample", "token"])
def test_gates_count_the_documents_that_a_block_runs_on(granularity):
    model, schedule = flops_of(), Schedule(6, 0.5, temporal="constant")
    sizes = {"rows": 2, "lengths": LENGTHS, "padded_length": 100}
    gates = draw_gates(schedule, granularity=granularity, seed=0, step=1, **sizes)
    expected = 0.0
    for gate in gates:
        if gate.tokens is not None:
            share = gate.tokens.counts / LENGTHS
            squares = (DOCUMENTS * share.repeat(2)) ** 2
            expected += 6 * 4 * 2 * 64**2 * gate.tokens.counts.sum() + 12 * 64 * squares.sum()
        elif gate.keep:
            rows = 2 if gate.rows is None else len(gate.rows)
            expected += rows / 2 * model.block(LENGTHS, documents=DOCUMENTS)
    assert model.gated_blocks(LENGTHS, gates, documents=DOCUMENTS) == pytest.approx(expected)


def test_plan_counts_the_documents_of_the_shards():
    run = load_config(json.loads(PUBLISHED_CONFIG))
    attributes = ShardAttributes("h", 30_522, "uncased", 128, "mlm", "s", 0, document_starts=True)
    packed = make_plan(run, data=Manifest(attributes, {}, {}, {}, attended_tokens=40.0))
    stream = make_plan(run, data=Manifest(attributes, {}, {}, {}))
    assert packed.run.model.next_sentence_prediction is False
    assert "attention within documents; the document of a token has 40 tokens on average" in format_plan(packed)
    assert "documents" not in format_plan(stream)
    assert stream.flops_full - packed.flops_full == pytest.approx(12 * 12 * 768 * (128**2 - 128 * 40.0))


def test_predicted_step_times_count_the_documents_of_the_shards():
    run = load_config(json.loads(PUBLISHED_CONFIG))
    attributes = ShardAttributes("h", 30_522, "uncased", 128, "mlm", "s", 0, document_starts=True)
    packed = make_plan(run, world_size=8, data=Manifest(attributes, {}, {}, {}, attended_tokens=40.0))
    stream = make_plan(run, world_size=8, data=Manifest(attributes, {}, {}, {}))
    for ours, whole in zip(packed.scaling, stream.scaling, strict=True):
        ratio = ours.without_dropping.ideal / whole.without_dropping.ideal
        assert ratio == pytest.approx(packed.flops_full / stream.flops_full)
        assert ours.step.ideal / whole.step.ideal == pytest.approx(packed.flops_at_limit / stream.flops_at_limit)
