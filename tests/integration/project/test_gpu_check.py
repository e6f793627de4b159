"""scripts/gpu_check.sh keeps to its time and loses no stage to another's failure; its programs are stand-ins here."""

from __future__ import annotations

import os
import re
import shlex
import sys

import pytest
from repository import REPOSITORY, tracked
from runs import run_captured

from benchmarks.__main__ import build_parser
from benchmarks.options import chosen
from benchmarks.quality.contenders import CONTENDERS
from bert_pld.cli import EXTRAS
from bert_pld.config import load_config

SCRIPT = REPOSITORY / "scripts" / "gpu_check.sh"
STAGES = ["setup", "tests", "base", "host", "training", "large", "kernels", "graphs"]
WHEELS = REPOSITORY / "scripts" / "gpu_wheels.sh"
SUBJECTS = sorted(set(re.findall(r"\bbench (\w+)", SCRIPT.read_text())))
# Stands for python3: notes its arguments and writes the JSON file; tests fail and BERT-large hangs. With SETUP, `setup`
# runs with this interpreter.
PYTHON = """#!/bin/bash
echo "$PYTORCH_NVML_BASED_CUDA_CHECK $*" >>"$CALLS"
[ "$1" != - ] || [ -z "$SETUP" ] || exec "$SETUP" "$@"
json=""
for argument; do
    [ "$previous" != --json ] || json="$argument"
    previous="$argument"
done
case "$*" in
*"-m pytest"*) echo "3 failed" && exit 1 ;;
*"--model_preset large"*) sleep 30 ;;
esac
[ -z "$json" ] || echo "{}" >"$json"
"""
# Stands for timeout: the limit is noted; one second passes for that of BERT-large, and none for another.
TIMEOUT = """#!/bin/bash
echo "limit $3" >>"$CALLS"
case "$*" in
*"--model_preset large"*) exec /usr/bin/timeout -k 1 1 "${@:4}" ;;
esac
exec "${@:4}"
"""

# Finds no installed package but the given ones and what they require.
ALLOWED_ONLY = """
import importlib, importlib.metadata as metadata, re, sys
from importlib.machinery import PathFinder
from packaging.requirements import Requirement

def name_of(package):
    return re.sub("[-_.]+", "-", package).lower()

allowed, left = set(), {roots!r}
while left:
    package = name_of(left.pop())
    if package not in allowed | {{"hf-xet"}}:
        allowed.add(package)
        try:
            lines = metadata.requires(package) or []
        except metadata.PackageNotFoundError:
            continue
        required = map(Requirement, lines)
        left += [one.name for one in required if one.marker is None or one.marker.evaluate({{"extra": ""}})]
owners = metadata.packages_distributions()
own = {{"bert-pld", "setuptools"}}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        packages = {{name_of(package) for package in owners.get(name.partition(".")[0], [])}}
        refused = packages and not packages & (allowed | own)
        return None if refused else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
for stage in {stages!r}:
    importlib.import_module(f"benchmarks.{{stage}}.command")
for name in ("benchmarks.paper.drawing", "benchmarks.paper.suite", "bert_pld.pretrain", "bert_pld.training.prepare"):
    importlib.import_module(name)
import pytest
assert pytest.main(["--collect-only", "-q", "-n0", "-p", "no:cacheprovider", "tests/unit/kernels", "tests/gpu"]) == 0
from benchmarks.intervals import mean_interval
low, high = mean_interval([0.5, 1.0, 1.5], 0.9258)
print(f"interval {{low:.3f}} {{high:.3f}}")
"""


def dry_run(*arguments: str) -> list[tuple[str, int, int]]:
    """Name, limit and latest end of each stage."""
    printed = run_captured(["bash", SCRIPT, "--dry-run", *arguments]).stdout
    found = re.findall(r"^(\w+) +limit +(\d+) s, must end at +(\d+) s$", printed, re.MULTILINE)
    assert len(found) == len(printed.splitlines())
    return [(name, int(limit), int(end)) for name, limit, end in found]


def test_default_run_ends_within_nine_minutes_whatever_happens():
    stages = dry_run()
    assert [name for name, _, _ in stages] == STAGES
    grace = 5
    assert sum(limit + grace for _, limit, _ in stages) == stages[-1][2] <= 540


@pytest.mark.parametrize("stages", [[], ["large", "tests", "kernels", "base"]])
def test_rerun_ends_within_four_minutes(stages):
    planned = dry_run("again", *stages)
    assert [name for name, _, _ in planned] == ["setup", *(stages or ["base", "large"])]
    assert planned[-1][2] <= 240


def test_every_file_of_gpu_tests_belongs_to_a_stage():
    named = re.findall(r"tests/gpu/\w+\.py", SCRIPT.read_text())
    assert sorted(set(named)) == sorted(str(path.relative_to(REPOSITORY)) for path in tracked("tests/gpu/test_*.py"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nonsense"], "nonsense: must be one of tests, base"), (["quality"], "quality: SHARDS '' is not a folder")],
)
def test_wrong_arguments_are_one_line(arguments, message):
    done = run_captured(["bash", SCRIPT, *arguments], expect=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def stand_ins(tmp_path):
    """The environment of a run with the programs above, and the file of their calls."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    for name, text in (("python3", PYTHON), ("timeout", TIMEOUT)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OUT": str(tmp_path / "out"), "CALLS": str(calls)}
    environment.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    return environment, calls


def test_quality_trains_small_with_adamw_for_all_contenders(stand_ins, tmp_path):
    environment, calls = stand_ins
    run_captured(["bash", SCRIPT, "quality"], env={**environment, "SHARDS": str(tmp_path)})
    (command,) = [line for line in calls.read_text().splitlines() if "benchmarks quality" in line]
    arguments = shlex.split(command.partition("benchmarks quality")[2])
    options = build_parser("quality").parse_args(arguments)
    config = load_config(options.deepspeed_config, options.set)
    assert config.deepspeed["optimizer"]["type"] == "AdamW"
    assert (config.model.num_layers, config.model.hidden_size) == (4, 512)
    assert config.training.max_steps * config.deepspeed["train_batch_size"] == 32_000
    assert config.deepspeed["scheduler"]["params"]["warmup_num_steps"] == 100
    assert config.progressive_layer_drop.gamma == 0.1
    assert options.data_dir == tmp_path
    assert {"hf_bert", "pre", "pld_batch"} < set(chosen("--contenders", options.contenders, CONTENDERS))


def wheels_of_the_host() -> list[str]:
    """Packages that gpu_wheels.sh names; it adds what DeepSpeed requires."""
    (named,) = re.findall(r"^packages=\((.*)\)$", WHEELS.read_text(), re.MULTILINE)
    return named.split()


def test_stages_import_only_packages_that_the_host_has_or_gets():
    """Anything else cannot be imported here, as on a host with torch, triton, scipy and the wheels alone."""
    allowed = {"torch", "triton", "deepspeed", "scipy", *wheels_of_the_host()}
    code = ALLOWED_ONLY.format(roots=sorted(allowed), stages=SUBJECTS)
    done = run_captured([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert re.search(r"^\d{3,} tests collected", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1] == "interval 0.000 2.000"


@pytest.mark.parametrize(
    ("stages", "needed"),
    [
        (["base", "curves"], {"scipy"}),
        (["quality"], {"h5py", "safetensors", "tokenizers", "tqdm"}),
        (["again", "base", "tests"], {"pytest", "xdist", "h5py", "safetensors", "tokenizers", "tqdm"}),
    ],
)
def test_setup_names_each_package_that_a_chosen_stage_lacks(stages, needed, stand_ins, tmp_path):
    environment, calls = stand_ins
    bare = tmp_path / "bare"
    bare.mkdir()
    always = {"torch", "triton", "numpy", "deepspeed", "transformers"}
    for name in {*always, "pytest", "xdist", "h5py", "safetensors", "scipy", "tokenizers", "tqdm"}:
        (bare / f"{name}.py").write_text("raise ImportError('none here')")
    environment |= {"SETUP": sys.executable, "PYTHONPATH": str(bare), "SHARDS": str(tmp_path)}
    done = run_captured(["bash", SCRIPT, *stages], expect=1, env=environment)
    (names,) = re.findall(r"^error: cannot import (.*); scripts/gpu_wheels.sh fetches", done.stdout, re.MULTILINE)
    assert set(names.split(", ")) == always | needed
    assert not re.search("-m (pytest|benchmarks)", calls.read_text())


def test_documentation_lists_the_packages_that_setup_imports():
    text, page = SCRIPT.read_text(), (REPOSITORY / "docs" / "gpu.md").read_text()
    shards = re.search(r"^shards=\((.*?)\)", text, re.MULTILINE)[1].split()
    rows = dict(re.findall(r"^\| (`.*?) \| also (.*?) \|$", page, re.MULTILINE))
    rows = {tuple(re.findall(r"`(\w+)`", stages)): packages.split(", ") for stages, packages in rows.items()}
    assert rows == {
        ("tests", "training", "modern", "graphs"): ["pytest", "pytest-xdist", *shards],
        ("saving", "quality", "recipe", "paper"): shards,
        ("curves", "recipe", "paper"): ["scipy"],
    }
    assert {"pytest", "pytest-xdist", *shards} <= set(wheels_of_the_host())
    assert set(EXTRAS["pretrain"]) <= set(wheels_of_the_host()), (
        "every package of the extra `pretrain` reads or writes data"
    )


def test_failed_and_hung_stages_lose_no_other_stage(stand_ins, tmp_path):
    (environment, calls), out = stand_ins, tmp_path / "out"
    done = run_captured(["bash", SCRIPT], expect=1, env=environment)
    rows = dict(re.findall(r"^(\w+) +\d+ s  (.*)$", done.stdout, re.MULTILINE))
    assert list(rows) == STAGES
    assert rows["tests"] == rows["training"] == rows["graphs"] == "FAILED: exit 1"
    assert rows["large"] == "FAILED: killed at its limit"
    assert {rows[name] for name in ("setup", "base", "host", "kernels")} == {"ok"}
    written = ["base.json", "gpu_check.log", "host_64.json", "host_8.json", "kernels.json"]
    assert sorted(path.name for path in out.iterdir()) == written
    lines = calls.read_text().splitlines()
    limits = [int(line.split()[1]) for line in lines if line.startswith("limit")]
    commands = [line for line in lines if not line.startswith("limit")]
    assert len(limits) == len(commands)
    assert all(line.startswith("1 ") for line in commands), "CUDA must be looked for through NVML"
    # What a stage leaves unused is added to the next one's limit.
    setup, first, *_ = dict.fromkeys(limits)
    assert setup < first < max(limits) < 540


def test_named_test_files_and_benchmark_options_exist():
    text = SCRIPT.read_text()
    for path in re.findall(r"tests/(?:gpu|unit)/[\w/.]+", text):
        assert (REPOSITORY / path).exists(), path
    for subject in SUBJECTS:
        assert (REPOSITORY / "benchmarks" / subject).is_dir(), subject
