"""scripts/environment.sh repairs a virtual environment whose creation was interrupted."""

import ensurepip
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import REPOSITORY
from runs import run_captured


def make_incomplete(folder: Path, partial_pip: bool) -> Path:
    """Create an environment whose pip is missing or lacks most of its files; return its site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "own.py").write_text("")
    if partial_pip:
        (packages / "pip").mkdir()
        (packages / "pip" / "__main__.py").write_text("import pip._internal")
        noted = packages / f"pip-{ensurepip.version()}.dist-info"
        noted.mkdir()
        (noted / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pip\nVersion: {ensurepip.version()}\n")
    return packages


def write_program(path: Path, commands: str) -> Path:
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)
    return path


def test_other_systems_than_linux_are_refused_before_anything_is_installed(tmp_path):
    write_program(tmp_path / "uname", "echo Darwin")
    venv = tmp_path / "venv"
    paths = {"BERT_PLD_VENV": str(venv), "PYTHON": sys.executable, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "-euc", f'source "{REPOSITORY}/scripts/environment.sh" tensorboard']
    done = run_captured(command, expect=1, env={**os.environ, **paths}, timeout=60)
    assert done.stderr == "error: Darwin: training and data preparation need Linux\n"
    assert not venv.exists()


@pytest.mark.parametrize("partial_pip", [False, True], ids=["without pip", "with a partial pip"])
def test_interrupted_environment_gets_a_complete_pip_and_keeps_its_python(partial_pip, tmp_path):
    venv, wheels = tmp_path / "venv", tmp_path / "wheels"
    packages = make_incomplete(venv, partial_pip)
    # An empty wheelhouse, so that nothing is fetched and the script fails when pip looks for torch.
    wheels.mkdir()
    (wheels / "none").write_bytes(b"")
    (wheels / "SHA256SUMS").write_text(f"{hashlib.sha256(b'').hexdigest()}  none\n")
    command = ["bash", "-c", f'source "{REPOSITORY}/scripts/environment.sh" tensorboard']
    unsuitable = write_program(tmp_path / "python3.13", "exit 1")
    paths = {"BERT_PLD_VENV": str(venv), "BERT_PLD_WHEELHOUSE": str(wheels), "PYTHON": str(unsuitable)}
    done = run_captured(command, expect=1, env={**os.environ, **paths})
    assert "No module named" not in done.stderr
    assert "torch" in done.stderr
    pip = run_captured([venv / "bin" / "python", "-m", "pip", "--version"], expect=None)
    assert pip.stdout.startswith(f"pip {ensurepip.version()} from {packages}"), pip.stderr
    assert (packages / "own.py").exists()
