"""A folder of wheels installs without a network, and a training run uses none.

The script and the index are the real ones; the checkout needs DeepSpeed and its requirements only. torch, which is most
of the bytes, is an empty wheel from an index that the test makes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from repository import REPOSITORY
from runs import clean_environment, pretrain_command, run_captured, small_config

SETUP = """
from setuptools import setup, find_packages
setup(name="checkout", version="1", packages=find_packages(), install_requires=["torch", "deepspeed", "numpy"],
      extras_require={"none": [], "tables": ["absl-py"]})
"""

# Loaded by every Python process of a run; writes down each host that it resolves or connects to.
AUDIT = """
import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        where = arguments[0] if event in ("socket.getaddrinfo", "socket.gethostbyname") else arguments[1]
        host = where[0] if isinstance(where, tuple) else where
        with open(os.environ["ASKED_FOR"], "a") as file:
            file.write(f"{host} {sys.argv[:1]}\\n")
with open(os.environ["ASKED_FOR"], "a") as file:
    file.write(f"started {sys.argv[:1]}\\n")
sys.addaudithook(note)
"""


def without_network(command: list[str]) -> list[str]:
    """The command in its own network namespace, which has the loopback device only."""
    for namespace in (["unshare", "--net"], ["unshare", "--net", "--map-root-user"]):
        if shutil.which("unshare") and subprocess.run([*namespace, "true"], capture_output=True).returncode == 0:
            return [*namespace, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    pytest.skip("this machine does not allow network namespaces (unshare --net)")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A checkout with the real scripts and pins, and an index with an empty torch."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "scripts").mkdir()
    for name in ("make_wheelhouse.sh", "environment.sh", "constraints.txt"):
        shutil.copy(REPOSITORY / "scripts" / name, root / "scripts" / name)
    (root / "setup.py").write_text(SETUP)
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    version = re.search(r"^torch==(\S+)", (root / "scripts" / "constraints.txt").read_text(), re.MULTILINE)[1]
    index = root / "index" / "torch"
    index.mkdir(parents=True)
    wheel, info = f"torch-{version}+zero-py3-none-any.whl", f"torch-{version}+zero.dist-info"
    with zipfile.ZipFile(index / wheel, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}+zero\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    (index / "index.html").write_text(f'<a href="{wheel.replace("+", "%2B")}">{wheel}</a>')
    return root


def make(checkout: Path, folder: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    script = ["bash", checkout / "scripts" / "make_wheelhouse.sh", "--extras", "none"]
    index = ["--torch_index", (checkout / "index").as_uri()]
    environment = {**os.environ, "PYTHON": sys.executable}
    return run_captured([*script, *index, *arguments, folder], expect=expect, env=environment)


@pytest.fixture(scope="module")
def wheelhouse(checkout) -> Path:
    folder = checkout / "wheels"
    make(checkout, folder)
    return folder


def install(checkout: Path, folder: Path, environment: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Source environment.sh without a network."""
    names = {"BERT_PLD_VENV": str(environment), "BERT_PLD_WHEELHOUSE": str(folder), "PYTHON": sys.executable}
    command = f'source "{checkout}/scripts/environment.sh" none && python -m pip list --format json'
    return run_captured(without_network(["bash", "-c", command]), expect=expect, env={**os.environ, **names})


def test_environment_is_installed_from_the_folder_without_a_network(checkout, wheelhouse, tmp_path):
    listed = [line.split() for line in (wheelhouse / "SHA256SUMS").read_text().splitlines() if line[0] != "#"]
    for digest, name in listed:
        assert hashlib.sha256((wheelhouse / name).read_bytes()).hexdigest() == digest
    assert sorted(name for _, name in listed) == sorted(path.name for path in wheelhouse.glob("*.whl"))
    done = install(checkout, wheelhouse, tmp_path / "venv")
    installed = {item["name"].lower(): item["version"] for item in json.loads(done.stdout.splitlines()[-1])}
    pins = (REPOSITORY / "scripts" / "constraints.txt").read_text().split()
    assert f"deepspeed=={installed['deepspeed']}" in pins
    assert f"pydantic=={installed['pydantic']}" in pins
    assert installed["torch"].endswith("+zero")
    assert installed["checkout"] == "1"


def test_damaged_and_missing_wheels_are_fetched_again(checkout, wheelhouse, tmp_path):
    folder = tmp_path / "wheels"
    shutil.copytree(wheelhouse, folder)
    listed = (folder / "SHA256SUMS").read_text()
    damaged, missing = (next(folder.glob(f"{name}-*.whl")) for name in ("tqdm", "hjson"))
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    missing.unlink()
    intact = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.whl") if path != damaged}
    refused = install(checkout, folder, tmp_path / "venv", expect=1)
    assert damaged.name in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith(f"error: BERT_PLD_WHEELHOUSE={folder}: ")
    make(checkout, folder)
    assert (folder / "SHA256SUMS").read_text() == listed
    assert {name: (folder / name).stat().st_mtime_ns for name in intact} == intact, "only what was missing is fetched"
    assert "already complete" in make(checkout, folder).stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--python", "3.9"], "--python 3.9: must be 3.10, 3.11 or 3.12"),
        (["--platform", "win_amd64"], "--platform win_amd64: must be manylinux_2_N_"),
        (["--extras", "test"], "--extras test: must be one of none, tables"),
        (["--torch_index", "cpu"], "--torch_index cpu: must be an http(s):// or file:// URL"),
        (["one"], "only one FOLDER is allowed"),
    ],
)
def test_wrong_argument_is_one_line_and_creates_nothing(checkout, tmp_path, arguments, says):
    done = make(checkout, tmp_path / "wheels", *arguments, expect=1)
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "wheels").exists()


def test_training_contacts_no_host_and_runs_without_a_network(corpus, tmp_path):
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(AUDIT)
    config = small_config(training={"max_steps": 2, "checkpoint_interval": 2})
    environment = clean_environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(hook), environment["PYTHONPATH"]])
    environment |= {"ASKED_FOR": str(tmp_path / "asked"), "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
    command = pretrain_command(config, corpus, tmp_path / "run")
    run_captured(without_network(command), env=environment)
    lines = (tmp_path / "asked").read_text().splitlines()
    assert len([line for line in lines if line.startswith("started")]) >= 1
    local = ("127.0.0.1", "localhost", "::1", "None", os.uname().nodename, "started")
    assert not [line for line in lines if line.split()[0] not in local]
