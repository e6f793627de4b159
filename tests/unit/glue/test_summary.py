"""The summary of results: choice of the learning rate, means, score differences, tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import ttest_ind

from bert_pld.cli import run
from bert_pld.finetune_glue import build_parser, main
from bert_pld.finetuning.sweep import ResultFolder
from bert_pld.glue.summary import difference, differences_table, draw, summarize, table, write_summary


def write_result(folder, task, rate, seed, diverged_at=None, conditions=None, **scores):
    place = folder / task / f"lr_{rate:g}_seed_{seed}"
    place.mkdir(parents=True)
    result = {
        "conditions": {"learning_rate": rate, "seed": seed, "epochs": 3, **(conditions or {})},
        "versions": {"torch": "2"},
        "diverged_at_step": diverged_at,
        "dev": {"dev": scores} if diverged_at is None else {},
    }
    (place / "result.json").write_text(json.dumps(result))


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "small"
    for rate, seed, accuracy in ((1e-4, 1, 60.0), (1e-4, 2, 64.0), (3e-4, 1, 70.0), (3e-4, 2, 74.0)):
        write_result(folder, "SST-2", rate, seed, accuracy=accuracy)
    write_result(folder, "CoLA", 1e-4, 1, matthews=10.0)
    write_result(folder, "WNLI", 1e-4, 1, accuracy=56.0)
    return folder


def test_dollar_signs_in_names_of_folders_are_no_formulas(results, tmp_path):
    draw({"cost $x_{ and $y": summarize(results)}, tmp_path / "g.svg")
    assert "<!-- cost $x_{ and $y -->" in (tmp_path / "g.svg").read_text()


def test_best_learning_rate_is_chosen_and_wnli_is_not_averaged(results):
    summary = summarize(results)
    assert summary["tasks"]["SST-2"]["learning_rate"] == 3e-4
    assert summary["tasks"]["SST-2"]["score"] == {"mean": 72.0, "deviation": pytest.approx(8**0.5), "n": 2}
    assert summary["mean"] == (72 + 10) / 2


def test_rate_with_fewer_seeds_is_not_chosen(results):
    write_result(results, "SST-2", 5e-4, 1, accuracy=99.0)
    assert summarize(results)["tasks"]["SST-2"]["learning_rate"] == 3e-4


def test_rate_that_diverged_with_one_seed_is_not_chosen(results):
    for seed, accuracy in ((1, 99.0), (2, 99.0)):
        write_result(results, "SST-2", 5e-4, seed, accuracy=accuracy)
    write_result(results, "SST-2", 5e-4, 3, diverged_at=40)
    summary = summarize(results)
    task = summary["tasks"]["SST-2"]
    assert (task["learning_rate"], task["score"]["mean"], task["score"]["n"]) == (3e-4, 72.0, 2)
    assert task["mean_by_learning_rate"] == {"0.0001": 62.0, "0.0003": 72.0}
    assert (task["diverged"], task["fine_tunings"]) == ({"0.0005": [3]}, 7)
    assert "| 72.0 ± 2.8 (1 of 7 diverged) | 56.0 | 41.0 |" in table({"small": summary})


def test_task_that_diverged_at_every_rate_has_no_score_and_leaves_no_mean(results, tmp_path):
    write_result(tmp_path / "bad", "SST-2", 1e-4, 1, accuracy=60.0)
    write_result(tmp_path / "bad", "SST-2", 1e-4, 2, diverged_at=7)
    write_result(tmp_path / "bad", "CoLA", 1e-4, 1, matthews=10.0)
    write_result(tmp_path / "bad", "WNLI", 1e-4, 1, accuracy=56.0)
    summaries = {"small": summarize(results), "bad": summarize(tmp_path / "bad")}
    assert summaries["bad"]["tasks"]["SST-2"]["score"] is None
    assert summaries["bad"]["mean"] is None
    assert table(summaries).splitlines()[-1] == "| bad | 10.0 | – (1 of 2 diverged) | 56.0 | – |"
    assert differences_table(summaries).splitlines()[-1] == "| small − bad | +0.0 | – | +0.0 |"
    draw(summaries, tmp_path / "g.svg")
    assert (tmp_path / "g.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    "content", ['{"conditions": {"learning_', "[1, 2]", '{"conditions": {"seed": 1}, "dev": {}}', "\xff"]
)
def test_damaged_result_is_reported_in_one_line(results, content, capsys):
    path = results / "SST-2" / "lr_0.0001_seed_2" / "result.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(SystemExit) as exited:
        run(main, build_parser(), ["--summarize", str(results)])
    assert exited.value.code == 1
    assert capsys.readouterr().err == (
        f"error: {path}: not a complete fine-tuning result; run the same command again, or remove the file\n"
    )
    assert ResultFolder(path.parent, "model", {"seed": 2}).read() is None  # the same command runs it again


@pytest.mark.parametrize(
    ("dev", "has"),
    [
        ({"dev": {}}, "none"),
        ({}, "none"),
        ({"dev": 70.0}, "none"),
        ({"dev": {"f1": 3.0}}, "dev/f1"),
        ({"dev": {"accuracy": "x"}}, "none"),
        ({"dev": {"accuracy": 70.0, "f1": 3.0}}, "dev/accuracy, dev/f1"),
    ],
)
def test_result_with_other_scores_than_the_task_has_is_named(results, dev, has):
    path = results / "SST-2" / "lr_0.0001_seed_2" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dev": dev}))
    with pytest.raises(ValueError) as error:
        summarize(results)
    assert str(error.value) == (
        f"{path}: must have the numbers dev/accuracy in dev, has {has}; remove the file and run the same command again"
    )


@pytest.mark.parametrize(
    ("conditions", "difference"),
    [
        ({"epochs": 30}, "epochs = 30, but {} one with 3"),
        ({"weights": "other"}, "weights = 'other', but {} one with None"),
    ],
)
def test_results_of_other_models_or_settings_are_not_averaged(results, conditions, difference):
    write_result(results, "SST-2", 3e-4, 3, accuracy=99.0, conditions=conditions)
    first, other = (results / "SST-2" / name for name in ("lr_0.0001_seed_1", "lr_0.0003_seed_3"))
    with pytest.raises(ValueError) as error:
        summarize(results)
    assert str(error.value).startswith(f"{other}: holds a result with {difference.format(first)}; a folder must have")


def test_summary_is_replaced_atomically(results):
    """The jobs of an array share the folder, and may read the summary while another job writes it."""
    write_summary(results)
    watched = [results / "summary.json", results / "summary.md"]
    inodes = {path: path.stat().st_ino for path in watched}
    opened = [path.open() for path in watched]
    write_result(results, "RTE", 1e-4, 1, accuracy=60.0)
    write_summary(results)
    for path, old in zip(watched, opened, strict=True):
        assert path.stat().st_ino != inodes[path]  # a new file has this name
        with old:
            assert "RTE" not in old.read()  # an open file still has the complete former content
        assert "RTE" in path.read_text()
    assert not list(results.glob(".summary*"))


def test_models_with_different_tasks_have_no_mean(results, tmp_path):
    write_result(tmp_path / "other", "SST-2", 1e-4, 1, accuracy=80.0)
    summaries = {"small": summarize(results), "other": summarize(tmp_path / "other")}
    assert [line.rsplit(" | ", 1)[1] for line in table(summaries).splitlines()[2:]] == ["– |", "– |"]
    assert table({"small": summaries["small"]}).endswith("| 41.0 |\n")


def of_seeds(*scores):
    return {"mean": np.mean(scores), "deviation": np.std(scores, ddof=1) if len(scores) > 1 else 0.0, "n": len(scores)}


def test_difference_has_the_interval_of_scipys_welch_test():
    first, second = np.random.default_rng(0).normal([[74.0], [71.0]], [[0.5], [2.0]], (2, 6))
    expected = ttest_ind(first, second, equal_var=False).confidence_interval()
    found = difference(of_seeds(*first), of_seeds(*second))
    assert found == pytest.approx((first.mean() - second.mean(), expected.low, expected.high))
    assert difference(of_seeds(70.0), of_seeds(60.0, 62.0)) == (9.0,)
    assert difference(of_seeds(70.0, 70.0), of_seeds(60.0, 60.0)) == (10.0, 10.0, 10.0)


def test_differences_are_bold_if_the_interval_excludes_zero():
    summaries = {
        name: {"tasks": {"SST-2": {"score": of_seeds(*scores)}}}
        for name, scores in (("a", (74, 74.2, 73.8)), ("b", (71, 71.2, 70.8)), ("c", (74, 75.5, 71.5)))
    }
    lines = differences_table(summaries).splitlines()
    assert lines[0] == "| difference, 95 % | SST-2 |"
    assert lines[2].startswith("| a − b | **+3.0 (+2.5 … +3.5)** |")
    assert lines[3].startswith("| a − c | +0.3 (")
    assert "**" not in lines[3]
    assert differences_table({"a": summaries["a"]}) == ""


def test_results_that_do_not_compare_are_named(results, tmp_path, capsys):
    for seed in (1, 2):
        write_result(tmp_path / "other", "SST-2", 1e-4, seed, accuracy=80.0, conditions={"epochs": 10, "weights": "b"})
    assert call("--summarize", results, tmp_path / "other") == 0
    warning = "warning: SST-2: epochs differs: 3 (small), 10 (other); the scores do not compare\n"
    assert capsys.readouterr().err == warning


def call(*arguments):
    return main(build_parser().parse_args(list(map(str, arguments))))


def test_several_folders_are_compared_in_a_second_table(results, tmp_path, capsys):
    for seed, accuracy in ((1, 60.0), (2, 61.0)):
        write_result(tmp_path / "fresh", "SST-2", 1e-4, seed, accuracy=accuracy)
    assert call("--summarize", results, tmp_path / "fresh") == 0
    assert "| small − fresh | " in capsys.readouterr().out
    assert call("--summarize", results) == 0
    assert "−" not in capsys.readouterr().out


def test_folders_with_the_same_name_and_json_without_summarize_are_refused(results, tmp_path):
    write_result(tmp_path / "elsewhere" / "small", "SST-2", 1e-4, 1, accuracy=80.0)
    with pytest.raises(ValueError, match="two folders are named small"):
        call("--summarize", results, tmp_path / "elsewhere" / "small")
    with pytest.raises(ValueError, match="--json: only with --summarize"):
        call("--task", "CoLA", "--json", tmp_path / "x.json")
