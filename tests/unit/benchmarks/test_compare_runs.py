"""scripts/measure/compare_runs.py on metrics with known answers, and on invalid runs."""

import functools
import json

import pytest
from runs import small_config

from bert_pld.config import load_config
from bert_pld.cost.flops import ModelFlops
from bert_pld.cost.work import mean_work
from bert_pld.pld.engine import make_schedule


@pytest.fixture
def run(run_script):
    return functools.partial(run_script, "compare_runs")


@pytest.fixture
def make_run(tmp_path):
    """Make a run with steps of 8 samples; θ is within 1 % of 0.5 from step 3 on."""

    def make(name, *, steps=6, seconds=1.0, evaluated=(6,), loss=4.0, kept=2.0, **pld):
        folder = tmp_path / name
        folder.mkdir()
        schedule = {"enabled": True, "theta": 0.5, "temporal": "exponential", "gamma": 1.6, **pld}
        config = small_config(progressive_layer_drop=schedule, model={"vocab_size": 64})
        (folder / "config.json").write_text(json.dumps(config))
        lines = []
        for step in range(1, steps + 1):
            common = {"step": step, "samples": 8 * step, "seconds": seconds * step}
            lines.append({**common, "loss": 5.0, "kept_blocks": kept if step > 3 else 3.0})
            if step in evaluated:
                lines.append({**common, "eval_mlm_loss": loss})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make


def test_times_losses_and_predictions_come_from_the_metrics(make_run, run):
    pld = make_run("pld", seconds=0.6, loss=4.2)
    with open(pld / "metrics.jsonl", "a") as lines:
        lines.write('{"step": 7, "sam')  # the run goes on: a line that is being written
    code, printed, errors = run(pld, make_run("baseline", kept=3.0, enabled=False))
    assert (code, errors) == (0, "")
    config = load_config(pld / "config.json")
    # At the limit of linear depth 3 × (1 - 0.5 × 2 / 3) = 2 blocks, which are those of the gates drawn too.
    ratio = ModelFlops(config.model, 32, 0.15).ratio(mean_work(make_schedule(config).limit, 1, "batch", 32))
    figures = [line.split()[-3:] for line in printed.splitlines()[1:4]]
    assert figures == [["4.2000", "4.0000", "1.050"], ["3.6", "6.0", "0.600"], ["75.00", "125.00", "0.600"]]
    assert " ".join(printed.split()).endswith(
        f"predicted from FLOPs {ratio:.3f} (of the gates drawn: {ratio:.3f}) measured over predicted {0.6 / ratio:.3f}"
    )


def test_runs_that_cannot_be_compared_are_errors_of_one_line(make_run, run, tmp_path):
    pld, baseline = make_run("pld"), make_run("baseline", enabled=False)
    short = make_run("short", steps=3, evaluated=(3,))
    lost, endless = make_run("lost"), make_run("endless", gamma=0)
    (lost / "metrics.jsonl").write_text('{"step": 1, "samples": 8}\n{"step": 1, "samples": 8, "eval_mlm_loss": 5.0}\n')
    for folders, message in (
        ((tmp_path / "none", baseline), "none/metrics.jsonl: cannot be read"),
        ((pld, make_run("unevaluated", evaluated=())), "unevaluated: has no evaluation"),
        ((baseline, pld), "baseline: drops no layers; the first run must use progressive_layer_drop.enabled"),
        ((pld, make_run("early", evaluated=(5,))), "last evaluated after 48 and 40 samples; must be equally many"),
        ((short, short), "short: 1 logging step(s) from step 3 on"),
        ((endless, baseline), "endless/config.json: progressive_layer_drop: θ never comes within 1 % of its limit"),
        ((pld, make_run("stopped_clock", seconds=0)), "stopped_clock: 4 logging step(s) from step 3 on"),
        ((pld, make_run("diverged", loss=None)), "diverged/metrics.jsonl, step 6: eval_mlm_loss must be a finite"),
        ((lost, baseline), "lost/metrics.jsonl, step 1: seconds must be a finite number"),
    ):
        code, printed, errors = run(*folders)
        assert (code, printed) == (1, "")
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        assert message in errors
