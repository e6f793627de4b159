"""The JSON files that commands write: strict JSON, and refused before any work where they cannot be written."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks import __main__ as benchmarks
from bert_pld import evaluate, finetune_glue, plan, plot
from bert_pld.cli import run
from bert_pld.files import write_json


def read_strictly(path):
    """Read JSON as every other language does: without NaN and Infinity."""
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path.name} has {name}"))


def test_numbers_that_json_lacks_become_null(tmp_path):
    write_json(tmp_path / "a.json", {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, "NaN")}]})
    assert read_strictly(tmp_path / "a.json") == {"a": None, "b": [1.5, None, {"c": [None, "NaN"]}]}


def test_plan_writes_strict_json(tmp_path):
    arguments = ["--deepspeed_config", "bert_base_pld_128.json", "--json", str(tmp_path / "plan.json")]
    plan.main(plan.build_parser().parse_args(arguments))
    written = read_strictly(tmp_path / "plan.json")
    assert written["depth_at_limit"] == pytest.approx(6, abs=0.1)
    assert written["cluster"]["activation_bytes_per_s"] is None  # no limit is assumed


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (plan, ["--deepspeed_config", "bert_base_pld_128.json"]),
        (evaluate, ["--checkpoint", "missing", "--data_dir", "missing"]),
        (finetune_glue, ["--summarize", "missing"]),
    ],
)
@pytest.mark.parametrize(("name", "reason"), [("", "not of a folder or a device"), ("x/y.json", "does not exist")])
def test_file_that_cannot_be_written_is_refused_first(command, arguments, name, reason, tmp_path, capsys):
    path = tmp_path / name
    with pytest.raises(SystemExit) as exited:
        run(command.main, command.build_parser(), [*arguments, "--json", str(path)])
    printed = capsys.readouterr()
    assert exited.value.code == 1
    assert printed.out == ""
    assert printed.err.startswith(f"error: --json {path}: ")
    assert reason in printed.err


@pytest.mark.parametrize(
    ("command", "parser", "arguments", "option"),
    [
        (plot.main, plot.build_parser(), ["missing"], "--output"),
        (finetune_glue.main, finetune_glue.build_parser(), ["--summarize", "missing"], "--plot"),
        (benchmarks.main, benchmarks.build_parser("paper"), ["summarize", "none", "--json", "a.json"], "--plot"),
        (benchmarks.main, benchmarks.build_parser("paper"), ["summarize", "none", "--json", "a.json"], "--time_plot"),
    ],
)
@pytest.mark.parametrize(
    ("name", "reason"), [("a.foo", "must end in .png, .svg or .pdf; nothing"), ("x/y.png", "its folder does not exist")]
)
def test_figure_that_cannot_be_written_is_refused_first(
    command, parser, arguments, option, name, reason, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exited:
        run(command, parser, [*arguments, option, name])
    assert exited.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {option} {name}: {reason}")
    assert not list(tmp_path.iterdir())
