"""scripts/environment.sh repairs a virtual environment that was killed while it was made."""

import ensurepip
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import REPOSITORY


def make_half(folder: Path, torn: bool) -> Path:
    """An environment whose pip is missing, or torn: noted as installed, without most of its files. Its packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "own.py").write_text("")
    if torn:
        (packages / "pip").mkdir()
        (packages / "pip" / "__main__.py").write_text("import pip._internal")
        noted = packages / f"pip-{ensurepip.version()}.dist-info"
        noted.mkdir()
        (noted / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pip\nVersion: {ensurepip.version()}\n")
    return packages


@pytest.mark.parametrize("torn", [False, True], ids=["without pip", "with a torn pip"])
def test_an_environment_that_was_killed_before_its_pip_was_whole_gets_one(torn, tmp_path):
    venv, wheels = tmp_path / "venv", tmp_path / "wheels"
    packages = make_half(venv, torn)
    # A folder of wheels that has none, so that nothing is fetched: the script ends where pip looks for torch.
    wheels.mkdir()
    (wheels / "none").write_bytes(b"")
    (wheels / "SHA256SUMS").write_text(f"{hashlib.sha256(b'').hexdigest()}  none\n")
    done = subprocess.run(
        ["bash", "-c", f'source "{REPOSITORY}/scripts/environment.sh" tensorboard'],
        env={**os.environ, "BERT_PLD_VENV": str(venv), "BERT_PLD_WHEELHOUSE": str(wheels), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "No module named" not in done.stderr
    assert "torch" in done.stderr
    pip = subprocess.run([venv / "bin" / "python", "-m", "pip", "--version"], capture_output=True, text=True)
    assert pip.stdout.startswith(f"pip {ensurepip.version()} from {packages}"), pip.stderr
    assert (packages / "own.py").exists()
