"""The comparison's scripts reject invalid input before they install, build or train anything."""

import subprocess

import pytest
from repository import REPOSITORY
from runs import clean_environment


def run_script(tmp_path, script, *arguments, **environment):
    """Run a script, which must fail without output; return its errors."""
    places = {"OUT": str(tmp_path / "out"), "BERT_PLD_VENV": str(tmp_path / "venv")}
    done = subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / script), *arguments],
        env={**clean_environment(), **places, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["reproduce.sh"], {}, "error: '': must be cpu or gpu"),
        (["reproduce.sh", "tpu"], {}, "error: 'tpu': must be cpu or gpu"),
        (["reproduce.sh", "cpu", "zero"], {}, "error: SEEDS: 'zero'; must be a number of at least 1"),
        (["reproduce.sh", "cpu", "0"], {}, "error: SEEDS: '0'; must be a number of at least 1"),
        (["reproduce.sh", "cpu"], {"GLUE": "nowhere"}, "error: GLUE: nowhere/CoLA/train.tsv not found"),
        (["reproduce_recipe.sh"], {"GLUE": "nowhere"}, "error: GLUE: nowhere/CoLA/train.tsv not found"),
        (["reproduce_recipe.sh", "0"], {}, "error: SEEDS: '0'; must be a number of at least 1"),
        (["compare_on_glue.sh", "narrow", "hub"], {}, "usage: bash scripts/compare_on_glue.sh narrow|base GLUE"),
        (["compare_on_glue.sh", "wide", "hub", "runs", "out", "m"], {}, "error: 'wide': must be narrow or base"),
        (["second_phase.sh", "one"], {}, "usage: bash scripts/second_phase.sh RUN_DIR DATA_DIR OUTPUT_DIR"),
        (["second_phase.sh", "nowhere", "shards", "out"], {}, "error: nowhere: has no given.json"),
    ],
)
def test_user_errors_are_one_line(arguments, environment, message, tmp_path):
    [line] = run_script(tmp_path, *arguments, **environment).splitlines()
    assert line.startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["CoLA/dev.tsv", "RTE/train.tsv", "RTE/dev.tsv"])
def test_missing_glue_file_is_reported_before_pretraining(missing, tmp_path):
    glue = tmp_path / "glue"
    for task in ("CoLA", "SST-2", "RTE"):
        (glue / task).mkdir(parents=True)
        for name in ("train.tsv", "dev.tsv"):
            if f"{task}/{name}" != missing:
                (glue / task / name).touch()
    errors = run_script(tmp_path, "reproduce.sh", "cpu", GLUE=str(glue))
    assert errors == f"error: GLUE: {glue}/{missing} not found; must be the folder of the official download, or hub\n"
    assert list(tmp_path.iterdir()) == [glue]
