"""The recorded work of a step has the bytes and FLOPs that are known, and the prediction follows from them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.__main__ import build_parser
from benchmarks.kernels.cases import OPERATIONS
from benchmarks.kernels.operation import Size
from benchmarks.operators.recording import record_model
from benchmarks.prediction import command
from bert_pld.config import load_config
from bert_pld.cost.flops import ModelFlops

ROWS, SEQ = 16, 128


@pytest.fixture(scope="module")
def model():
    sizes = {"preset": "base", "num_layers": 2, "vocab_size": 30528, "next_sentence_prediction": True}
    return load_config({"train_batch_size": 1, "model": sizes}).model


@pytest.mark.parametrize(
    ("kernel", "operation", "direction"),
    [
        ("add_norm_forward_kernel", "add_norm", "forward"),
        ("add_norm_backward_kernel", "add_norm", "backward"),
        ("bias_gelu_forward_kernel", "bias_gelu", "forward"),
        ("bias_gelu_backward_kernel", "bias_gelu", "backward"),
    ],
)
def test_recorded_bytes_of_a_kernel_are_those_of_its_benchmark(model, kernel, operation, direction):
    # Many rows, so that the partial sums, which the benchmark leaves out, are small.
    work = record_model(model, "triton", 256, SEQ)
    launches = [one.bytes for one in work if one.name == kernel]
    size = Size(tokens=256 * SEQ, hidden=768, dtype="bf16")
    assert max(launches) == pytest.approx(
        OPERATIONS[operation](size, torch.device("cpu")).moved_bytes(direction), rel=0.02
    )


def test_recorded_flops_are_those_of_the_cost_model(model):
    for kernels in ("triton", "reference"):
        work = record_model(model, kernels, ROWS, SEQ)
        products = sum(one.flops for one in work if one.kind == "product")
        attention = sum(one.flops for one in work if one.kind == "attention")
        flops = ModelFlops(model, SEQ, 19 / SEQ)
        expected = ROWS * flops.per_sequence()
        # Attention's backward computes the scores again: 7 products instead of 6.
        assert products + attention * 6 / 7 == pytest.approx(expected, rel=0.01)


def test_work_of_forward_and_backward_belongs_to_its_module(model):
    deeper = dataclasses.replace(model, num_layers=3)
    two, three = (record_model(config, "triton", ROWS, SEQ) for config in (model, deeper))
    blocks = [sum(one.part == "blocks" for one in work) for work in (two, three)]
    assert blocks[1] - blocks[0] == len(three) - len(two)
    assert sum(one.flops for one in two if one.part == "MLM head") > 6 * 300 * 768 * 30528
    assert {one.part for one in two} == {"embeddings", "blocks", "final norm", "MLM head", "NSP head", "losses"}


def predicted(*arguments):
    options = ["--models=base", "--optimizers=AdamW", "--micro_batches=1", "--rounds=4", *arguments]
    result = command.measure(build_parser("prediction").parse_args(options))
    return result, {step["gpu"]: step for step in result["steps"]}


def test_prediction_follows_its_assumptions():
    result, steps = predicted()
    for step in steps.values():
        device = step["products"] + step["attention"] + step["blocks"] + step["rest"]
        assert step["total"] == max(device, step["host"]) + step["tail"]
        assert step["mfu"] == step["ideal"] / step["total"]
    # Memory-bound work takes time in proportion to bandwidth, matrix products do not.
    assert steps["H100"]["blocks"] / steps["H200"]["blocks"] == pytest.approx(4.3 / 3.0, rel=0.05)
    assert steps["H100"]["products"] == pytest.approx(steps["H200"]["products"], rel=0.02)
    assert "| base | 1 · 256 × 128 | AdamW | H200 |" in command.report(result)

    _, slower = predicted("--assume", "share_of_bandwidth=0.425", "--assume", "launch_of_a_kernel_s=0.01")
    assert slower["H100"]["blocks"] == pytest.approx(2 * steps["H100"]["blocks"], rel=0.02)
    assert slower["H200"]["total"] == slower["H200"]["host"] + slower["H200"]["tail"] > 700
    graphed, with_graphs = predicted("--cuda_graphs")
    assert graphed["micro_batch"]["base"]["graphs"] == 2 * 11
    # Eleven blocks, in two directions; the device also copies their gradients.
    assert with_graphs["H200"]["host"] < 0.5 * steps["H200"]["host"]
    assert 1.0 < with_graphs["H200"]["blocks"] / steps["H200"]["blocks"] < 1.05
    with pytest.raises(ValueError, match=r"--assume speed=1: must be a number above 0 for one of product_flops_per_s"):
        predicted("--assume", "speed=1")
