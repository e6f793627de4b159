"""What `pip install .` installs: bert_pld, data_prep and the configurations, and nothing else of the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from repository import REPOSITORY, tracked
from runs import run_captured


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the tracked files alone, so that nothing left in the checkout gets in or is changed."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "bert_pld", "data_prep", "configs", "tests")
    for path in tracked(*names):
        target = source / path.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True, capture_output=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_two_packages_and_the_configurations(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    code = {str(path.relative_to(REPOSITORY)) for path in tracked("bert_pld/*.py", "data_prep/*.py")}
    configs = [path for path in tracked("configs/*.json") if path.parent.name != "scales"]
    assert names == code | {f"bert_pld/{path.relative_to(REPOSITORY)}" for path in configs}


def test_installed_commands_find_shipped_configurations_by_name_in_any_folder(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def plan(config):
        command = [sys.executable, "-m", "bert_pld.plan", "--deepspeed_config", config, "--vocab_size", "30528"]
        return run_captured(command, expect=None, cwd=empty, env=environment)

    plans = [plan(name) for name in ("bert_base_pld_128.json", "configs/bert_base_pld_128.json")]
    for done in plans:
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("batch\n  4,096 sequences = 512 micro-batch × 8 accumulation")
    assert plans[0].stdout.replace("configs/", "") == plans[1].stdout.replace("configs/", "")
    missing = plan("no_such.json")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: no_such.json: ")
    (empty / "bert_base_pld_128.json").write_text("{")
    assert plan("bert_base_pld_128.json").returncode == 1, "a file of the user comes before a shipped one"
