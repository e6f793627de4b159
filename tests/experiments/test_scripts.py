"""The comparison's scripts refuse what cannot work before they install, build or train anything."""

import subprocess

import pytest
from runs import REPOSITORY, clean_environment


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["reproduce.sh"], {}, "error: '': must be cpu or gpu"),
        (["reproduce.sh", "tpu"], {}, "error: 'tpu': must be cpu or gpu"),
        (["reproduce.sh", "cpu", "zero"], {}, "error: SEEDS: 'zero'; must be a number of at least 1"),
        (["reproduce.sh", "cpu", "0"], {}, "error: SEEDS: '0'; must be a number of at least 1"),
        (["reproduce.sh", "cpu"], {"GLUE": "nowhere"}, "error: GLUE: nowhere/CoLA/train.tsv is not there"),
        (["second_phase.sh", "one"], {}, "usage: bash scripts/second_phase.sh RUN_DIR DATA_DIR OUTPUT_DIR"),
        (["second_phase.sh", "nowhere", "shards", "out"], {}, "error: nowhere: has no given.json"),
    ],
)
def test_mistakes_are_one_line(arguments, environment, message, tmp_path):
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
