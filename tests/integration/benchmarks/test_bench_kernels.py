"""benchmarks kernels on tiny sizes: moved bytes, peer formulas, correctness checks, and the command."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
import triton
from benchmark_command import check_error, measure, run_benchmark

from benchmarks.kernels import cases, device_timing, sweep
from benchmarks.kernels import command as kernels
from benchmarks.kernels import rows as kernel_rows
from benchmarks.kernels.cases import OPERATIONS
from benchmarks.kernels.check import exact_results, kernel_errors, passes, relative_error
from benchmarks.kernels.implementations import torch_implementation
from benchmarks.kernels.operation import Case, Size
from benchmarks.kernels.sweep import candidate_tiles, fits
from bert_pld.kernels import joins
from bert_pld.kernels.tiles import Tile, element_tile, reducing_row_tile, row_tile
from bert_pld.pld.subsets import upload

CPU = torch.device("cpu")
SMALL = Size(tokens=16, hidden=8, dtype="bf16", seq_length=4, vocabulary=10)
TINY = ["--tokens=16", "--hidden=32", "--seq_length=4", "--vocab_size=50", "--rounds=1", "--device=cpu"]


@pytest.fixture
def interpreted(monkeypatch):
    """Run interpreted kernels as if this device could time them, on two input sets and few tiles."""
    monkeypatch.setattr(kernel_rows, "triton_obstacle", lambda device: None)
    monkeypatch.setattr(kernel_rows, "number_of_sets", lambda moved_bytes, device: 2)
    monkeypatch.setattr(sweep, "candidate_tiles", lambda *given: candidate_tiles(*given)[:3])
    if not triton.knobs.runtime.interpret:
        pytest.skip("kernels are interpreted only where TRITON_INTERPRET=1 (set where there is no GPU)")


# 16 rows of 8 in bf16 are 256 bytes, the 12 of three kept sequences of four 192; mean and rstd take 8 bytes a row.
BYTES = {
    ("layer_norm", "forward"): 256 + 2 * 16 + 256 + 128,
    ("layer_norm", "backward"): 256 + 256 + 16 + 128 + 256 + 2 * 32,
    ("layer_norm_gather", "forward"): 192 + 2 * 16 + 64 + 192 + 96,
    ("layer_norm_gather", "backward"): 192 + 192 + 16 + 64 + 96 + 256 + 2 * 32,
    ("add_norm", "forward"): 256 + 256 + 3 * 16 + 256 + 256 + 128,
    ("add_norm", "backward"): 3 * 256 + 16 + 128 + 256 + 256 + 3 * 32,
    ("add_norm_scatter_gather", "forward"): 256 + 192 + 3 * 16 + 2 * 64 + 256 + 192 + 96,
    ("add_norm_scatter_gather", "backward"): 192 + 256 + 192 + 16 + 2 * 64 + 96 + 256 + 192 + 3 * 32,
    # Six of the ten ids occur; four positions and two types; ids and types take 20 bytes a row, and for backward 12.
    ("embed", "forward"): 6 * 16 + 256 + 6 * 16 + 16 * 20,
    ("embed", "backward"): 256 + 10 * 16 + 6 * 16 + 16 * 12,
    ("embed_norm", "forward"): 6 * 16 + 256 + 8 * 16 + 16 * 20 + 128,
    ("embed_norm", "backward"): 256 + 6 * 16 + 10 * 16 + 8 * 16 + 16 * 12 + 128,
    ("bias_gelu", "forward"): 1024 + 64 + 1024,
    ("bias_gelu", "backward"): 1024 + 1024 + 64 + 1024 + 128,
    ("bias_gelu_tanh", "forward"): 2112,
    ("bias_gelu_tanh", "backward"): 3264,
    # 12 values a row, of two matrices
    ("geglu", "forward"): 2 * 384 + 384,
    ("geglu", "backward"): 384 + 2 * 384 + 2 * 384,
    # one head of 8, positions, and the table of 4 positions × 4 pairs
    ("rotary", "forward"): 3 * 256 + 3 * 256 + 64 + 2 * 64,
    ("rotary", "backward"): 3 * 256 + 3 * 256 + 64 + 2 * 64,
    ("split_qkv", "backward"): 6 * 256 + 3 * 32,
    # two masked positions
    ("cross_entropy", "both"): 40 + 40 + 2 * (8 + 4 + 4),
}


def test_moved_bytes_equal_those_counted_by_hand():
    counted = {
        (name, direction): operation.moved_bytes(direction)
        for name, operation in ((name, make(SMALL, CPU)) for name, make in OPERATIONS.items())
        for direction in operation.directions
    }
    assert counted == BYTES


@pytest.mark.parametrize("name", OPERATIONS)
def test_peer_formulas_equal_the_specification(name, monkeypatch):
    monkeypatch.setattr(cases, "DROPOUT", 0.0)
    operation = OPERATIONS[name](dataclasses.replace(SMALL, dtype="fp32"), CPU)
    inputs = operation.random_inputs(1)
    outputs, gradients = exact_results(operation, inputs)
    for found, exact in zip(operation.formula()(*inputs.arguments), outputs, strict=False):
        assert relative_error(found, exact) < 1e-6
    directions = [direction for direction in operation.directions if direction != "forward"]
    contender = torch_implementation("eager", operation.formula(), Case(operation, directions[0], [inputs]))
    for _ in range(2):
        for found, exact in zip(contender.call(0), gradients, strict=True):
            assert relative_error(found, exact) < 1e-6


def test_input_sets_differ_by_seed_and_have_no_zeros():
    operation = OPERATIONS["add_norm_scatter_gather"](SMALL, CPU)
    first, again, other = (operation.random_inputs(seed) for seed in (1, 1, 2))
    assert torch.equal(first.arguments[0], again.arguments[0])
    for one, two in zip(first.arguments, other.arguments, strict=True):
        assert not torch.equal(one, two)
        assert one.abs().min() > 0
    joined, normed = operation.join.rows, operation.rows
    assert (joined.count, normed.count) == (12, 12)
    assert not torch.equal(joined.compact_row, normed.compact_row)


@pytest.mark.parametrize("name", OPERATIONS)
def test_kernels_pass_the_correctness_check(name, interpreted):
    operation = OPERATIONS[name](dataclasses.replace(SMALL, hidden=32), CPU)
    errors = kernel_errors(operation, operation.random_inputs(3))
    assert set(errors) == {"both"} if name == "cross_entropy" else {"forward", "backward"}
    for error in errors.values():
        assert 0 <= error < 1e-2
        assert error > 0 or name == "split_qkv"  # copies, and sums that fp32 holds exactly


@pytest.mark.parametrize("name", ["add_norm", "add_norm_scatter_gather"])
def test_seed_and_scale_are_uploaded_once_and_not_in_each_timed_call(name, interpreted, monkeypatch):
    uploads = []
    monkeypatch.setattr(joins, "upload", lambda words, device: uploads.append(words.shape) or upload(words, device))
    operation = OPERATIONS[name](dataclasses.replace(SMALL, hidden=32), CPU)
    for seed in range(3):
        inputs = operation.random_inputs(seed)
        normed, *saved = operation.forward(inputs)
        operation.backward(inputs, (normed, *saved))
    assert uploads == [(1, 4)]


@pytest.fixture(scope="module", params=[[], ["--no_graphs"]], ids=["graphs", "launches"])
def measured_on_gpu(request, tmp_path_factory):
    """The result, and whether CUDA graphs were used."""
    arguments = ["--tokens=8192", "--hidden=768", "--peers=eager", "--rounds=3", *request.param]
    return measure(tmp_path_factory.mktemp("kernels"), "kernels", *arguments), not request.param


@pytest.mark.gpu
def test_every_kernel_and_its_peers_are_timed_on_a_gpu(measured_on_gpu):
    result, graphs = measured_on_gpu
    assert [(row["operation"], row["direction"]) for row in result["rows"]] == list(BYTES)
    for row in result["rows"]:
        assert set(row["times"]) == {"triton", "eager", "copy"}
        assert 0 < row["error"] < 2e-2
        for times in row["times"].values():
            assert times["graph"] is graphs, times["graph_obstacle"]
            assert times["share_of_copy"] > 0
            assert times["host_us"] > 0


@pytest.mark.gpu
@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="other workers slow some calls on the GPU down")
def test_no_call_is_faster_than_memory(measured_on_gpu):
    """Inputs do not come from the cache: a large copy's bandwidth is the limit."""
    for row in measured_on_gpu[0]["rows"]:
        for times in row["times"].values():
            assert times["share_of_copy"] < 1.15


def test_check_rejects_nan_and_unwritten_outputs(interpreted, monkeypatch):
    assert not passes(float("nan"))
    assert not passes(0.021)
    assert passes(0.019)
    operation = OPERATIONS["bias_gelu"](SMALL, CPU)

    def leaves_out_a_row(inputs, tile=None):
        out = torch.empty_like(inputs.arguments[0])
        out[1:] = torch.nn.functional.gelu(inputs.arguments[0] + inputs.arguments[1])[1:].detach()
        return (out,)

    monkeypatch.setattr(operation, "forward", leaves_out_a_row)
    errors = kernel_errors(operation, operation.random_inputs(0))
    assert not passes(errors["forward"])
    assert passes(errors["backward"])
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("width", [32, 768, 1024, 4096])
def test_sweep_tries_only_tiles_that_fit(width):
    backward = [(make(width), "backward") for make in (reducing_row_tile, element_tile)]
    for default, direction in ((row_tile(width), "forward"), *backward, (Tile(1, 4096, 16), "both")):
        tiles = candidate_tiles(default, direction)
        assert tiles[0] == default
        assert len(set(tiles)) == len(tiles)
        for tile in tiles[1:]:
            assert fits(tile)
            for number in (tile.rows, tile.width, tile.num_warps):
                assert number & (number - 1) == 0
            assert tile.width == default.width or direction == "both"
        shared = {tile.programs_per_multiprocessor for tile in tiles}
        assert len(shared) == 1 or direction == "backward"
        if width >= 768:
            assert 4 <= len(tiles) <= 60


def test_peers_are_timed_on_a_cpu_and_absent_kernels_are_explained(tmp_path, capsys):
    result = measure(tmp_path, "kernels", *TINY, "--dtypes=fp32,bf16", "--peers=eager,apex")
    printed = capsys.readouterr().out
    assert [(row["operation"], row["direction"]) for row in result["rows"]] == 2 * list(BYTES)
    assert all(rate > 1e-3 for rate in result["copy_gb_s"])
    assert result["torch"] == torch.__version__
    assert result["failed"] == []
    for row in result["rows"]:
        assert set(row["times"]) == {"eager", "copy"}
        assert row["below_target"] is None
        for times in row["times"].values():
            assert 0 < times["lowest_us"] <= times["median_us"] <= times["highest_us"]
            assert times["gb_s"] == pytest.approx(row["bytes"] / times["median_us"] / 1e3)
            assert times["share_of_copy"] == pytest.approx(times["gb_s"] / max(result["copy_gb_s"]))
    assert f"triton left out: needs a GPU ({len(result['rows'])} rows)" in printed
    assert "apex left out: not installed (4 rows)" in printed


def test_command_works_without_triton(tmp_path):
    code = (
        "import runpy, sys; sys.modules['triton'] = None; sys.argv = ['bench', 'kernels', *sys.argv[1:]]\n"
        "runpy.run_module('benchmarks', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, *TINY, "--operations=layer_norm,cross_entropy"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "triton not installed" in done.stdout
    assert "cross_entropy           both" in done.stdout


def test_kernels_are_checked_swept_and_their_inputs_restored(interpreted, tmp_path):
    arguments = ["--operations=add_norm,cross_entropy", "--peers=none", "--sweep"]
    for row in measure(tmp_path, "kernels", *TINY, *arguments)["rows"]:
        assert set(row["times"]) == {"triton", "copy"}
        assert 0 <= row["error"] < 1e-5
        assert row["below_target"] is True
        swept = row["sweep"]
        assert swept["default"]["tile"] == swept["tried"][0]["tile"]
        assert swept["best"]["us"] <= swept["default"]["us"]
        assert all("error" not in tried for tried in swept["tried"])


def test_killed_run_keeps_the_rows_of_its_finished_operations(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(OPERATIONS, "cross_entropy", interrupt)
    result = measure(tmp_path, "kernels", *TINY, "--operations=layer_norm,cross_entropy", code=130)
    assert [row["direction"] for row in result["rows"]] == ["forward", "backward"]
    assert "layer_norm" in kernels.report(result)


def test_wrong_kernel_fails_the_command_after_the_report(interpreted, monkeypatch, capsys):
    forward = cases.BiasGelu.forward
    monkeypatch.setattr(cases.BiasGelu, "forward", lambda *given: tuple(1.1 * out for out in forward(*given)))
    assert run_benchmark("kernels", *TINY, "--operations=bias_gelu,layer_norm", "--peers=none") == 1
    printed = capsys.readouterr().out
    assert "FAILED bias_gelu forward: differs from the specification by 1.0e-01" in printed
    assert printed.count("FAILED") == 2
    assert "layer_norm              backward" in printed


def test_overwritten_inputs_are_restored_before_each_pass():
    values = [torch.zeros(1), torch.zeros(1)]
    seen = []

    def call(index):
        seen.append(values[index].item())
        return values[index].add_(1)

    contender = device_timing.Implementation("adds", call, lambda: [value.zero_() for value in values])
    prepared = device_timing.prepare(contender, 2, CPU, graphs=True)
    device_timing.take_turns([prepared], 2, 3, CPU)
    assert seen == [0.0] * 10
    assert len(prepared.seconds) == 3
    assert not prepared.graph


def row(operation, share, **others):
    times = {"median_us": 10.0, "lowest_us": 9.0, "highest_us": 11.0, "gb_s": 4000 * share, "graph": True}
    times |= {"graph_obstacle": None, "share_of_copy": share, "host_us": 21.5}
    tile = {"rows": 1, "width": 1024, "num_warps": 1, "programs_per_multiprocessor": 2}
    swept = {"default": {"tile": tile, "us": 10.0}, "best": {"tile": {**tile, "num_warps": 4}, "us": 8.0}, "tried": []}
    size = {"tokens": 8192, "hidden": 768, "dtype": "bf16"}
    return {
        "operation": operation, "direction": "forward", **size, "bytes": 25_000_000, "absent": {}, "sweep": swept,
        "times": {"triton": times, "eager": {**times, "median_us": 30.0, "graph_obstacle": "no capture"}},
        "below_target": None, "error": 1.5e-3, "failed": None, **others,
    }  # fmt: skip


def test_report_marks_rows_below_the_target():
    rows = [row("layer_norm", 0.91), row("bias_gelu", 0.84)]
    kernels.compare_with_copy(rows, 4000.0)
    assert [one["below_target"] for one in rows] == [False, True]
    result = {
        "device": "a GPU", "torch": "2", "triton": "3", "graphs": True, "rounds": 20, "copy_gb_s": [3900.0, 4000.0],
        "target_share": 0.85, "peers": ["eager"], "rows": rows, "failed": [],
    }  # fmt: skip
    printed = kernels.report(result).splitlines()
    above, below = (next(line for line in printed if line.startswith(name)) for name in ("layer_norm", "bias_gelu"))
    assert "91 " in above
    assert "<" not in above
    assert "84<" in below
    assert "30.0 (3.00×)" in below
    assert "1 of 2 rows below 85%" in printed
    assert "eager of bias_gelu forward without a graph: no capture (1 row)" in printed
    assert any("best 1×1024, 4 warps" in line and "(1.25×)" in line for line in printed)


def test_user_errors_are_one_line(capsys):
    for arguments, message in (
        (("--tokens=100",), "--tokens 100: must be a multiple of --seq_length 128"),
        (("--tokens=-128",), "--tokens -128: must be positive integers joined by commas"),
        (("--hidden=a",), "--hidden a: must be positive integers joined by commas"),
        (("--dtypes=fp8",), "--dtypes fp8: must be a list of fp32, bf16, fp16"),
        (("--operations=softmax",), "--operations softmax: must be a list of layer_norm"),
        (("--peers=liger",), "--peers liger: must be a list of eager, compiled, apex"),
        (("--rounds=0",), "--rounds 0: must be at least 1"),
        (("--device=meta",), "--device meta: must be cuda or cpu"),
    ):
        check_error(capsys, message, "kernels", "--device=cpu", *arguments)
