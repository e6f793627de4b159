"""The comparison's scripts reject invalid input before they install, build or train anything."""

import subprocess

import pytest
from repository import REPOSITORY
from runs import clean_environment


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["reproduce.sh"], {}, "error: '': must be cpu or gpu"),
        (["reproduce.sh", "tpu"], {}, "error: 'tpu': must be cpu or gpu"),
        (["reproduce.sh", "cpu", "zero"], {}, "error: SEEDS: 'zero'; must be a number of at least 1"),
        (["reproduce.sh", "cpu", "0"], {}, "error: SEEDS: '0'; must be a number of at least 1"),
        (["reproduce.sh", "cpu"], {"GLUE": "nowhere"}, "error: GLUE: nowhere/CoLA/train.tsv not found"),
        (["second_phase.sh", "one"], {}, "usage: bash scripts/second_phase.sh RUN_DIR DATA_DIR OUTPUT_DIR"),
        (["second_phase.sh", "nowhere", "shards", "out"], {}, "error: nowhere: has no given.json"),
    ],
)
def test_user_errors_are_one_line(arguments, environment, message, tmp_path):
    script, *others = arguments
    done = subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / script), *others],
        env={
            **clean_environment(),
            "OUT": str(tmp_path / "out"),
            "BERT_PLD_VENV": str(tmp_path / "venv"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
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
    done = subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / "reproduce.sh"), "cpu"],
        env={
            **clean_environment(),
            "GLUE": str(glue),
            "OUT": str(tmp_path / "out"),
            "BERT_PLD_VENV": "/dev/null/none",
        },
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: GLUE: {glue}/{missing} not found; must be the folder of the official download, or hub\n"
    )
    assert not (tmp_path / "out").exists()
