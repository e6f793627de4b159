"""Predicted step times against sums by hand, limits, and an enumeration of independently drawn gates."""

import dataclasses
import itertools
import math

import pytest

from bert_pld.config import load_config
from bert_pld.cost import scaling
from bert_pld.cost.communication import Collective
from bert_pld.cost.flops import ModelFlops, parameter_count
from bert_pld.cost.memory import estimate_memory
from bert_pld.cost.scaling import Cluster, collective_seconds, with_assumptions
from bert_pld.cost.scaling_table import scaling_rows

LINKS = {"intra_bytes_per_s": 100.0, "inter_bytes_per_s": 10.0, "intra_latency_s": 2.0, "inter_latency_s": 30.0}
PLAIN = Cluster(ranks_per_node=4, **LINKS)
FULL = [[1.0] * 12]


def run_of(stage=1, **zero):
    model = {"preset": "base", "vocab_size": 30528, "next_sentence_prediction": True}
    config = {"zero_optimization": {"stage": stage, **zero}, "model": model, "bf16": {"enabled": True}}
    return load_config({"train_micro_batch_size_per_gpu": 64, **config})


def step_of(world_size, run=None, micro=64, kept=FULL):
    sizes = {"world_size": world_size, "micro_batch_size": micro}
    return scaling.predict_step(run or run_of(), Cluster(), **sizes, kept=kept)


def test_collective_time_includes_both_levels_of_links():
    gather = Collective("all_gather", "parameters", 1000.0, 2)
    # (4 − 1)/4 of 1000 bytes at 100 a second, 3 hops of 2 s per call
    assert collective_seconds(PLAIN, gather, 4) == pytest.approx(7.5 + 2 * 6.0)
    # 8 nodes: 7/8 of a rank's quarter at 10 a second, 7 hops of 30 s per call
    assert collective_seconds(PLAIN, gather, 32) == pytest.approx(7.5 + 21.875 + 2 * (6.0 + 210.0))
    # reduce and broadcast, over a tree of 3 levels
    reduce = dataclasses.replace(gather, kind="all_reduce")
    assert collective_seconds(PLAIN, reduce, 32) == pytest.approx(2 * (7.5 + 21.875 + 2 * (6.0 + 90.0)))
    scatter = dataclasses.replace(gather, kind="reduce_scatter")
    as_all_reduce = dataclasses.replace(PLAIN, reduce_scatter_as_all_reduce=True)
    assert collective_seconds(as_all_reduce, scatter, 32) == pytest.approx(collective_seconds(PLAIN, reduce, 32))


def test_step_time_is_the_sum_of_its_parts():
    step = step_of(64)
    flops = ModelFlops(run_of().model, 128).per_sequence()
    assert step.ideal == pytest.approx(64 * flops / Cluster().flops_per_s)
    assert step.compute == step.ideal
    assert step.exposed == step.communication > 0
    assert step.total == pytest.approx(step.compute + step.exposed + step.copies + step.update + step.fixed)
    assert step.tokens_per_s == pytest.approx(64 * 64 * 128 / step.total)
    tiny = step_of(64, micro=1)
    assert tiny.compute == pytest.approx(12 * Cluster().launch_s_per_block)


def test_speed_of_element_wise_work_counts_in_every_row():
    run = load_config(
        {**run_of().deepspeed, "train_batch_size": 4096, "model": {"preset": "base", "vocab_size": 30528}}
    )
    run = run.with_model(next_sentence_prediction=True)
    rows = [
        scaling_rows(run, Cluster(activation_bytes_per_s=speed), 64, 4096, 64, [1.0] * 12) for speed in (math.inf, 1e12)
    ]
    for without, slow in zip(*rows, strict=True):
        memory = estimate_memory(run, slow.micro_batch_size, slow.world_size).activation_bytes_at_depth(12)
        longer = slow.step.compute - without.step.compute
        assert longer == pytest.approx(slow.accumulation_steps * memory / 1e12)


def test_all_buckets_but_the_last_overlap_with_backward():
    whole = step_of(64, run_of(overlap_comm=True))
    assert whole.exposed == whole.communication  # one bucket of 500 M elements holds every gradient
    bucketed = step_of(64, run_of(overlap_comm=True, reduce_bucket_size=10_000_000))
    count = parameter_count(run_of().model)
    gradients = collective_seconds(Cluster(), Collective("all_reduce", "gradients", 2 * count, -(-count // 10**7)), 64)
    assert bucketed.communication - bucketed.exposed == pytest.approx(gradients * (1 - 1e7 / count))
    accumulated = step_of(64, run_of(overlap_comm=True, reduce_bucket_size=10_000_000), micro=8, kept=FULL * 8)
    window = Cluster().overlap * accumulated.compute * 2 / 3 / 8  # the last micro-batch's backward
    assert accumulated.communication - accumulated.exposed == pytest.approx(window)


def test_dropping_saves_a_smaller_share_of_the_step_than_of_its_compute():
    kept = [[1 - l / 24 for l in range(1, 13)]]
    for stage in range(4):
        full, dropped = step_of(64, run_of(stage)), step_of(64, run_of(stage), kept=kept)
        assert dropped.compute / full.compute == pytest.approx(0.726, abs=1e-3)
        assert dropped.compute / full.compute < dropped.total / full.total < 1.0
        sent = dropped.communication / full.communication
        assert sent < 0.95 if stage in (1, 2) else sent == 1.0


def test_efficiency_falls_with_ranks_and_rises_with_accumulation():
    by_ranks = [step_of(ranks).efficiency for ranks in (8, 64, 256, 1024)]
    assert by_ranks == sorted(by_ranks, reverse=True)
    assert step_of(64, kept=FULL * 8).efficiency > step_of(64).efficiency
    stage_2 = step_of(64, run_of(2), kept=FULL * 8)
    assert stage_2.efficiency < step_of(64, kept=FULL * 8).efficiency  # stage 2 reduces in every micro-batch


def test_slowest_of_independent_ranks_equals_the_enumeration():
    keep = [0.9, 0.3]
    outcomes = [(0, 0.1 * 0.7), (1, 0.9 * 0.7), (1, 0.1 * 0.3), (2, 0.9 * 0.3)]  # blocks of one rank, probability
    expected = sum(p * q * max(a, b) for (a, p), (b, q) in itertools.product(outcomes, repeat=2))
    assert scaling.slowest_of_independent(keep, 1, 2) == pytest.approx(expected)
    assert scaling.slowest_of_independent(keep, 3, 1) == pytest.approx(3 * sum(keep))
    assert scaling.slowest_of_independent([1 - l / 24 for l in range(1, 13)], 1, 1024) == pytest.approx(11.9, abs=0.15)


def test_invalid_assumption_is_rejected():
    assert with_assumptions(Cluster(), {"ranks_per_node": 4, "overlap": 0}).ranks_per_node == 4
    for name, value in (
        ("nvlink", 1),
        ("overlap", 1.5),
        ("inter_bytes_per_s", 0),
        ("ranks_per_node", 2.5),
        ("ranks_per_node", float("inf")),
    ):
        with pytest.raises(ValueError, match=f"--assume {name}"):
            with_assumptions(Cluster(), {name: value})
    with pytest.raises(ValueError, match="--assume flops_per_s='x': must be a number above 0"):
        with_assumptions(Cluster(), {"flops_per_s": "x"})
