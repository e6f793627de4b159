"""Predicted communication against the model's tensors and sums by hand; test_bench_communication counts a real run."""

import pytest

from bert_pld.config import load_config
from bert_pld.cost.communication import bytes_sent, payload_bytes, step_collectives
from bert_pld.cost.flops import parameter_count, parameter_tensors
from bert_pld.model.bert import BertForPreTraining

MODEL = {"preset": "mini", "vocab_size": 1008, "next_sentence_prediction": True}
BLOCK = 12 * 256 * 256 + 13 * 256  # parameters of one block of the preset mini
MICRO_BATCHES = [[1, 1, 0, 0], [1, 0, 0, 1]]


def run_of(stage, model=MODEL, bf16=False, **zero):
    config = {"zero_optimization": {"stage": stage, **zero}, "model": model, "bf16": {"enabled": bf16}}
    return load_config({"train_micro_batch_size_per_gpu": 4, **config})


def gradients(collectives):
    return payload_bytes(collectives, content="gradients")


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("normalization", ["pre", "post"])
def test_parameter_tensors_equal_the_model_s(normalization, pairs):
    model = run_of(0, {**MODEL, "normalization": normalization, "next_sentence_prediction": pairs}).model
    parameters = dict(BertForPreTraining(model).named_parameters())
    block_of = {name: int(name.split(".")[2]) if ".blocks." in name else -1 for name in parameters}
    expected = sorted((p.numel(), p.dim() >= 2, block_of[name]) for name, p in parameters.items())
    found = [(t.elements, t.is_matrix, -1 if t.block is None else t.block) for t in parameter_tensors(model)]
    assert sorted(found) == expected


def test_dropped_blocks_are_sent_at_stages_0_and_3_only():
    count = parameter_count(run_of(0).model)
    sent = {stage: gradients(step_collectives(run_of(stage), 2, MICRO_BATCHES)) for stage in range(4)}
    assert sum(t.elements for t in parameter_tensors(run_of(0).model) if t.block == 2) == BLOCK
    assert sent[0] == 4 * count
    assert sent[1] == 4 * (count - BLOCK)  # block 3 has a gradient in no micro-batch
    assert sent[2] == 4 * (2 * count - 4 * BLOCK)  # each micro-batch reduces its own
    assert sent[3] == 4 * 2 * count  # every tensor's size is even


@pytest.mark.parametrize(("name", "size"), [("fp16", 2), ("FP16", 2), ("Bf16", 2), ("FP32", 4)])
def test_type_of_communication_is_read_in_any_case(name, size):
    run = load_config({"model": MODEL, "communication_data_type": name})
    assert gradients(step_collectives(run, 2)) == size * parameter_count(run.model)


def test_stage_1_with_overlap_and_accumulation_sends_all_gradients():
    run = run_of(1, overlap_comm=True)
    assert gradients(step_collectives(run, 2, MICRO_BATCHES)) == 4 * parameter_count(run.model)
    assert gradients(step_collectives(run, 2, MICRO_BATCHES[:1])) == 4 * (parameter_count(run.model) - 2 * BLOCK)


def test_probabilities_give_the_expected_bytes():
    run = run_of(1)
    halves = step_collectives(run, 2, [[0.5] * 4, [0.5] * 4])
    assert gradients(halves) == pytest.approx(4 * (parameter_count(run.model) - BLOCK))  # 4 blocks · 1/4 dropped twice


def test_parameters_are_gathered_after_the_step_or_in_every_micro_batch():
    tensors = parameter_tensors(run_of(0).model)
    groups = [sum(t.elements for t in tensors if t.is_matrix is matrices) for matrices in (True, False)]
    for stage in (1, 2):
        gathered = payload_bytes(step_collectives(run_of(stage, bf16=True), 96, MICRO_BATCHES), "all_gather")
        assert gathered == 2 * sum(-(-group // 192) * 192 for group in groups)
    large = sum(t.elements for t in tensors if t.elements > 100_000)
    small = sum(t.elements for t in tensors) - large
    gathered = payload_bytes(step_collectives(run_of(3, bf16=True), 2, MICRO_BATCHES), "all_gather")
    assert gathered == 2 * (2 * large + small)
    twice = run_of(3, bf16=True, stage3_max_reuse_distance=1000)
    assert payload_bytes(step_collectives(twice, 2, MICRO_BATCHES), "all_gather") == 2 * (4 * large + small)


def test_bytes_sent_are_those_of_ring_collectives():
    run = run_of(1)
    reduce_and_gather = step_collectives(run, 8)
    assert bytes_sent(reduce_and_gather, 8) == pytest.approx(7 / 8 * 12 * parameter_count(run.model), rel=1e-5)
    owners = step_collectives(run_of(1, use_multi_rank_bucket_allreduce=False), 8)
    assert bytes_sent(owners, 8) == pytest.approx(7 / 8 * 8 * parameter_count(run.model), rel=1e-5)
    partitioned = step_collectives(run_of(3), 8)
    difference = bytes_sent(partitioned, 8, reduce_scatter_as_all_reduce=True) - bytes_sent(partitioned, 8)
    assert difference == pytest.approx(7 / 8 * gradients(partitioned))
    assert step_collectives(run, 1) == []
