"""The command line of benchmarks, and the subjects gradient_variance and curves, on tiny sizes."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from benchmark_command import check_error, measure
from benchmark_command import run_benchmark as run
from repository import REPOSITORY

from benchmarks import __main__ as bench
from benchmarks.curves import command as curves_command
from benchmarks.gradient_variance import command as gradient_variance
from benchmarks.paper.tables import found_in

DOCS = REPOSITORY / "docs"


def test_help_lists_the_subjects(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.build_parser(None).parse_args(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "train             Training throughput" in printed
    assert "example:\n  python -m benchmarks train" in printed


def test_gradient_variance_is_finite_for_every_setting(tmp_path, capsys):
    tiny = ["--num_layers=4", "--hidden_size=32", "--num_attention_heads=2", "--vocab_size=64", "--seq_length=16"]
    settings = ["--micro_batch_sizes=2,4", "--thetas=0.5", "--draws=16", "--trained_steps=2", "--device=cpu"]
    result = measure(tmp_path, "gradient_variance", *tiny, *settings)
    assert gradient_variance.report(result) in capsys.readouterr().out
    figures = result["figures"]
    keys = [(one["weights"], one["micro_batch_size"], one["theta"]) for one in figures]
    assert keys == [("initial", 2, 0.5), ("initial", 4, 0.5), ("trained", 2, 0.5), ("trained", 4, 0.5)]
    for one in figures:
        assert one["blocks_expected"] == 2.75
        assert one["sample"]["blocks_mean"] == pytest.approx(2.75, abs=1 / one["micro_batch_size"])
        assert one["sample"]["blocks_standard_deviation"] < one["batch"]["blocks_standard_deviation"]
        for granularity in ("batch", "sample", "token"):
            assert 0 < one[granularity]["relative_variance"] < math.inf
            assert list(one[granularity]["by_part"]) == list(gradient_variance.PARTS)
        assert one["token"]["blocks_mean"] == pytest.approx(2.75, abs=0.1)
        assert one["token"]["blocks_standard_deviation"] < 1e-12  # the share is the same at every step
        assert one["ratio"] == one["batch"]["relative_variance"] / one["sample"]["relative_variance"]
    assert all(0 < one["relative_variance"] < 1 for one in result["between_batches"])
    check_error(capsys, "--draws 20: must be a multiple of 8, at least 16", "gradient_variance", "--draws=20")


def test_streaming_moments_equal_those_of_stored_vectors():
    generator = torch.Generator().manual_seed(0)
    vectors = 5.0 + torch.randn(64, 7, generator=generator, dtype=torch.float64)
    moments = gradient_variance.StreamingMoments()
    for vector in vectors:
        moments.add(vector)
    assert moments.variance == pytest.approx(vectors.var(dim=0).sum().item())
    assert torch.allclose(moments.mean, vectors.mean(dim=0))
    parts = ({"head": vector[:3], "embeddings": vector[3:]} for vector in vectors)
    of_parts = gradient_variance.moments_of(parts, draws=64)
    within = [chunk.var(dim=0).sum() for chunk in vectors.chunk(8)]
    assert of_parts["variance"] == pytest.approx(sum(within).item() / 8)
    squared = vectors.mean(dim=0).square().sum().item() - of_parts["variance"] / 64
    assert of_parts["relative_variance"] == pytest.approx(of_parts["variance"] / squared)


def test_part_without_a_gradient_in_any_draw_is_one_line():
    draws = [{"head": torch.ones(3) + index, "last third of the blocks": torch.zeros(2)} for index in range(16)]
    message = "--draws 16: last third of the blocks got no gradient, or one that its variance hides; give more draws"
    with pytest.raises(ValueError, match=message):
        gradient_variance.moments_of(draws, draws=16)


def test_documented_gradient_variance_equals_the_result_file():
    for name in ("gradient_variance_keep_first_block", "gradient_variance"):
        header, _, *lines = found_in(DOCS / "results" / "paper_settings.md", name).splitlines()
        assert header.startswith("| weights | sequences |")
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        result = json.loads((DOCS / "results" / f"{name}_cpu.json").read_text())
        of = {(one["weights"], str(one["micro_batch_size"]), f"{one['theta']:g}"): one for one in result["figures"]}
        between = {
            (b["weights"], str(b["micro_batch_size"])): b["relative_variance"] for b in result["between_batches"]
        }
        assert [tuple(row[:3]) for row in rows] == list(of)
        for row in rows:
            one = of[tuple(row[:3])]
            assert float(row[3]) == pytest.approx(one["batch"]["relative_variance"], abs=6e-4)
            assert float(row[4]) == pytest.approx(one["sample"]["relative_variance"], abs=6e-4)
            assert float(row[5].split(" ± ")[0]) == pytest.approx(one["ratio"], abs=6e-3)
            assert float(row[6]) == pytest.approx(between[tuple(row[:2])], abs=6e-3)
            for cell, granularity in zip(row[7:], ("batch", "sample"), strict=True):
                depth = [one[granularity]["blocks_mean"], one[granularity]["blocks_standard_deviation"]]
                assert [float(number) for number in cell.split(" ± ")] == pytest.approx(depth, abs=6e-3)


@pytest.mark.parametrize("name", ["bench", "experiments"])
def test_former_module_names_print_the_new_command(name):
    done = subprocess.run([sys.executable, "-m", f"bert_pld.{name}", "train"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: bert_pld.{name} has moved; from a checkout, run: python -m benchmarks")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("seeds", "dtypes"), [(2, 1), (3, 2), (6, 1), (6, 2)])
def test_false_alarm_rate_for_equal_backends_is_at_most_five_percent(seeds, dtypes):
    draws = np.random.default_rng(0)
    runs, alarms = 1000, 0
    for _ in range(runs):
        found = []
        for _ in range(dtypes):
            final = draws.normal(4.0, 0.05, (2, seeds)) + draws.normal(0.0, 0.1, seeds)  # seeds differ, backends do not
            curves = {name: [[loss] * 4 for loss in losses] for name, losses in zip("ab", final.tolist(), strict=True)}
            found.append(curves_command.compare(curves, ["a", "b"], dtypes)["differs"])
        alarms += any(found)
    assert alarms / runs <= 0.05


def test_different_and_diverged_backends_are_reported():
    spread = np.random.default_rng(1).normal(0.0, 0.01, 6)
    first = [[4.0] * 4] * 6
    assert curves_command.compare({"a": first, "b": [[4.1 + s] * 4 for s in spread]}, ["a", "b"])["differs"]
    assert curves_command.compare({"a": first, "b": [*first[1:], [math.nan] * 4]}, ["a", "b"])["differs"]


def test_curves_compares_two_backends_over_seeds(tmp_path, capsys):
    sizes = ["--model_preset=tiny", "--vocab_size=512", "--steps=8", "--micro_batch_size=4", "--seq_length=16"]
    for backends, dtypes, message in (
        ("reference,reference", "fp32", "--backends reference,reference: must be two"),
        ("reference,triton", "fp16", "--dtypes fp16: needs a GPU"),
        ("reference,x", "fp32", "--backends reference,x: must be a list of reference, compiled, triton"),
    ):
        options = ("--device=cpu", f"--backends={backends}", f"--dtypes={dtypes}")
        check_error(capsys, message, "curves", *sizes, *options)
    path = tmp_path / "curves.json"
    options = ["--backends=reference,triton", "--dtypes=fp32", "--seeds=2", "--device=cpu", f"--json={path}"]
    code = run("curves", *sizes, *options)
    result = json.loads(path.read_text())
    (figures,) = result["figures"]
    assert code == int(result["failed"]) == int(figures["differs"])
    assert [len(run) for run in figures["curves"]["triton"]] == [8, 8]
    # Different dropout masks, the same model: close, not equal.
    assert figures["curves"]["triton"][0][0] == pytest.approx(figures["curves"]["reference"][0][0], rel=0.1)
    assert figures["curves"]["triton"] != figures["curves"]["reference"]
