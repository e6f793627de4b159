"""The same training on DeepSpeed releases that still have a PLD of their own and on those that removed it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import clean_environment, pretrain_command, read_metrics, run_captured, run_pretrain, small_config

OLDEST, BEFORE_PINNED = "0.16.9", "0.19.6"


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("installed") / "run"
    run_pretrain(config(), corpus, run_dir)
    return read_metrics(run_dir)


def config():
    block = {"temporal": "exponential", "gamma": 0.1}
    return small_config(progressive_layer_drop=block, zero_optimization={"stage": 1}, training={"eval_interval": 0})


def installed(release: str) -> Path:
    """The folder with this release alone that scripts/test.sh has installed beside the environment."""
    folder = Path(sys.prefix) / f"deepspeed-{release}"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing; scripts/test.sh installs it")
    return folder


@pytest.mark.parametrize("release", [OLDEST, pytest.param(BEFORE_PINNED, marks=pytest.mark.thorough)])
def test_losses_and_theta_do_not_depend_on_the_release(release, corpus, expected, tmp_path):
    folder = installed(release)
    environment = clean_environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment["PYTHONPATH"]])
    version = run_captured([sys.executable, "-c", "import deepspeed; print(deepspeed.__version__)"], env=environment)
    assert version.stdout.strip().splitlines()[-1].startswith(release)
    run_captured(pretrain_command(config(), corpus, tmp_path / "run"), env=environment)
    losses = read_metrics(tmp_path / "run")
    assert np.array(losses) == pytest.approx(np.array(expected), rel=1e-6)
    thetas = read_metrics(tmp_path / "run", "theta")
    assert thetas == pytest.approx([0.5 * np.exp(-0.1 * step) + 0.5 for step in range(12)])
