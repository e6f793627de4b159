"""Benchmarks and measuring scripts refuse options in one line, before they measure anything."""

import importlib
import os

import pytest
from benchmark_command import check_error
from repository import REPOSITORY
from scripts.measure import compare_with_trainer, measure_packing

NOWHERE = ["--json", "nowhere/figures.json"]
GLUE = ["--model", "m", "--task", "CoLA", "--glue_dir", "glue"]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("compare_continued_pretraining", ["--data_dir", "shards"]),
        ("compare_with_trainer", GLUE),
        ("compare_segmenters", ["--gold", "gold.json"]),
        ("measure_filled_masks", ["exported", "--text", "text", "--held_out", "held_out"]),
        ("measure_scripts", []),
        ("measure_deduplication", ["--source", "books=novels"]),
        ("measure_tokenizers", ["--source", "books=novels"]),
    ],
)
def test_missing_folder_of_the_figures_is_reported_first(script, arguments, run_script):
    code, printed, errors = run_script(script, *arguments, *NOWHERE)
    message = "error: --json nowhere/figures.json: its folder does not exist; nothing was measured\n"
    assert (code, printed, errors) == (1, "", message)


@pytest.mark.parametrize("name", sorted(path.stem for path in (REPOSITORY / "scripts/measure").glob("*.py")))
def test_usage_of_a_script_names_the_module_that_runs_it(name):
    script = importlib.import_module(f"scripts.measure.{name}")
    assert script.build_parser().prog == f"python -m scripts.measure.{name}"


def test_folder_or_device_in_place_of_the_file_of_figures_is_refused(run_script, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):
        arguments = ["--source", "books=novels", "--rounds", "0", "--json", place]
        code, printed, errors = run_script("measure_tokenizers", *arguments)
        must = "must be the name of a file, not of a folder or a device; nothing was measured"
        assert (code, printed, errors) == (1, "", f"error: --json {place}: {must}\n")


@pytest.mark.parametrize("option", ["--json", "--plot", "--time_plot"])
def test_summary_of_the_comparison_reports_a_missing_folder_first(option, capsys, tmp_path):
    arguments = ["paper", "summarize", str(tmp_path), "--json", str(tmp_path / "summary.json"), option, "nowhere/f.png"]
    check_error(capsys, f"{option} nowhere/f.png: its folder does not exist; nothing was written", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"device": ', "conditions.json: not valid JSON"),
        ("{}", "conditions.json: device: None; must be one of cpu, gpu"),
    ],
)
def test_summary_of_the_comparison_names_a_damaged_file(content, message, capsys, tmp_path):
    (tmp_path / "conditions.json").write_text(content)
    arguments = ["paper", "summarize", str(tmp_path), "--json", str(tmp_path / "summary.json")]
    check_error(capsys, message, *arguments)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("compare_continued_pretraining", ["--data_dir", "s", "--repeats", 0], "--repeats 0: must be at least 1"),
        ("measure_tokenizers", ["--source", "books=novels", "--rounds", 0], "--rounds 0: must be at least 1"),
        ("measure_packing", ["--turns", 0], "--turns 0: must be at least 1"),
        ("measure_packing", ["--mean_length", 100, "inf"], "--mean_length inf: must be a number of tokens above 0"),
        ("measure_packing", ["--seq_length", 8192], "--seq_length 8192: must be at most 4096, the tokens of a step"),
        ("compare_wikitext_parsers", ["dump.xml", "--articles", 0], "--articles 0: must be at least 1"),
        ("compare_wikitext_parsers", ["dump.xml", "--turns", -1], "--turns -1: must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_errors_of_one_line(script, arguments, message, run_script):
    assert run_script(script, *arguments) == (1, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["communication", "--counted_steps", "0"], "--counted_steps 0: must be at least 1"),
        (["communication", "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["checkpoint", "--micro_batch_size", "0"], "--micro_batch_size 0: must be at least 1"),
        (["checkpoint", "--model_preset", "tiny", "--seq_length", "1024"], "data.seq_length: 1024; must be at most"),
        (["curves", "--micro_batch_size", "0"], "--micro_batch_size 0: must be at least 1"),
        (["curves", "--theta", "1.5"], "--theta 1.5: must be a number in (0, 1]"),
        (["curves", "--device", "abacus"], "--device abacus: must be cuda or cpu"),
        (["gradient_variance", "--device", "abacus"], "--device abacus: must be cuda or cpu"),
        (["gradient_variance", "--device", "cuda:99"], "--device cuda:99: this machine has no"),
        (["gradient_variance", "--trained_theta", "2"], "--trained_theta 2: must be a number in (0, 1]"),
        (["gradient_variance", "--vocab_size", "16", "--seq_length", "8"], "--vocab_size 16: must be at least 32"),
        (["gradient_variance", "--trained_steps", "-3"], "--trained_steps -3: must be at least 0"),
        (["prediction", "--rounds", "-5"], "--rounds -5: must be at least 1"),
        (["kernels", "--device", "abacus"], "--device abacus: must be cuda or cpu"),
        (["train", "--theta", "0"], "--theta 0: must be a number in (0, 1]"),
    ],
)
def test_benchmarks_refuse_numbers_out_of_range(arguments, message, capsys):
    check_error(capsys, message, *arguments)


def test_two_mean_lengths_that_rows_cut_alike_are_two_figures():
    options = measure_packing.build_parser().parse_args(
        ["--seq_length", "64", "--hidden_size", "64", "--turns", "1", "--mean_length", "60000", "90000"]
    )
    names = ["whole rows", "documents of 64 tokens, mean 60000", "documents of 64 tokens, mean 90000"]
    assert list(measure_packing.tokens_per_second(options)) == names


def test_one_seed_has_no_standard_error():
    figures = {"bert_pld": [80.0, 84.0], "trainer": [81.0, 83.0]}
    # Each mean of two has the error deviation / √2: 2 and 1.
    assert compare_with_trainer.standard_error(figures) == pytest.approx(5**0.5)
    assert compare_with_trainer.standard_error({name: scores[:1] for name, scores in figures.items()}) is None
