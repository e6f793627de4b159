"""The figure of runs, and errors in its arguments and files."""

import json
import math

import pytest

from bert_pld import cli, plot


@pytest.fixture
def make_run(tmp_path):
    def make(name, *, theta=0.5, steps=200, evaluations=True, config=True):
        folder = tmp_path / name
        folder.mkdir()
        records = []
        for step in range(10, steps + 1, 10):
            loss = 3 + 6 * math.exp(-step / 50)
            common = {"step": step, "samples": step * 32, "seconds": step * 0.5 * theta}
            losses = {"loss": loss, "mlm_loss": loss}
            records.append({**common, **losses, "theta": theta, "kept_blocks": 4 * theta, "lr": 1e-3})
            if evaluations and step % 50 == 0:
                records.append({**common, "eval_mlm_loss": loss + 0.1})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        if config:
            (folder / "config.json").write_text(json.dumps({"model": {"num_layers": 4}}))
        return folder

    return make


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.run(plot.main, plot.build_parser(), [str(argument) for argument in arguments])
    return stopped.value.code


def test_figure_and_legend_of_two_runs(make_run, tmp_path, capsys):
    output = tmp_path / "figure.png"
    assert run(make_run("baseline", theta=1.0), make_run("pld"), "--output", output, "--title", "both") == 0
    data = output.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == 11 * 160
    final = 3 + 6 * math.exp(-4) + 0.1
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"  baseline: held-out loss {final:.3f}, 100 s of training",
        f"  pld: held-out loss {final:.3f}, 50 s of training",
    ]


def test_run_without_evaluation_or_config_is_plotted(make_run, tmp_path, capsys):
    output = tmp_path / "figure.svg"
    folder = make_run("short", evaluations=False, config=False)
    assert run(folder, "--output", output, "--label", "mine") == 0
    assert output.read_text().count("<svg") == 1
    assert "  mine: 50 s of training" in capsys.readouterr().out


def test_dollar_signs_in_names_are_no_formulas(make_run, tmp_path):
    output = tmp_path / "figure.svg"
    assert run(make_run("costs"), "--output", output, "--label", "cost $x_{ and $y", "--title", "a$b$c") == 0
    drawn = output.read_text()
    assert "<!-- cost $x_{ and $y: held-out loss" in drawn
    assert "<!-- a$b$c -->" in drawn


def test_share_of_masks_is_drawn_if_it_changes(make_run, tmp_path):
    folder, output = make_run("falling"), tmp_path / "figure.svg"
    title = "<!-- learning rate and share of masked tokens -->"
    assert run(folder, "--output", output) == 0
    assert title not in output.read_text()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    changed = [{**one, "mask_probability": 0.3 - one["step"] / 2000} for one in records]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in changed))
    assert run(folder, "--output", output) == 0
    assert title in output.read_text()


def test_newest_record_of_a_step_counts_and_an_incomplete_last_line_is_ignored(make_run):
    folder = make_run("resumed")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 200, "samples": 6400, "mlm_loss": 2.5, "seconds": 60}) + "\n")
        file.write('{"step": 210, "sam')
    curves = plot.read_run(folder)
    assert curves.training[-1]["mlm_loss"] == 2.5
    assert len(curves.training) == 20
    assert curves.column("samples", of="evaluations") == [1600, 3200, 4800, 6400]
    assert curves.num_layers == 4


def test_smoothing_is_an_unbiased_running_mean():
    assert plot.smooth([3.0] * 5, 10) == pytest.approx([3.0] * 5)
    assert plot.smooth([1.0, 2.0], 0.5) == [1.0, 2.0]
    decay = math.exp(-1 / 4)
    assert plot.smooth([1.0, math.nan, 2.0], 4)[2] == pytest.approx((decay * 1 + 2) / (decay + 1))


def test_each_mistake_gives_one_error_line(make_run, tmp_path, capsys):
    good, empty, damaged = make_run("good"), make_run("empty", steps=0), make_run("damaged")
    output = tmp_path / "figure.png"
    (damaged / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    labelled = (good, good, "--label", "one")
    for arguments, figure, message in (
        ((tmp_path / "missing",), output, "missing/metrics.jsonl: cannot be read"),
        ((empty,), output, "empty/metrics.jsonl: holds no metrics yet"),
        ((damaged,), output, "metrics.jsonl, line 2: not a line of metrics"),
        ((good,), tmp_path / "figure.docx", "must end in .png, .svg or .pdf"),
        (labelled, output, "--label: given 1 times; must be given once for each of 2"),
    ):
        assert run(*arguments, "--output", figure) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error
    assert not output.exists()
