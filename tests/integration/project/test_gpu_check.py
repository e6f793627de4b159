"""scripts/gpu_check.sh keeps to its time and loses no stage to another's failure; its programs are stand-ins here."""

from __future__ import annotations

import os
import re
import shlex

import pytest
from repository import REPOSITORY
from runs import run_captured

from benchmarks.__main__ import build_parser
from benchmarks.options import chosen
from benchmarks.quality.contenders import CONTENDERS
from bert_pld.config import load_config

SCRIPT = REPOSITORY / "scripts" / "gpu_check.sh"
STAGES = ["setup", "tests", "base", "training", "large", "muon", "kernels", "cudnn"]
# Stands for python3: notes its arguments and writes the JSON file; tests fail and BERT-large hangs.
PYTHON = """#!/bin/bash
echo "$PYTORCH_NVML_BASED_CUDA_CHECK $*" >>"$CALLS"
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
# Stands for timeout: the limit is noted, and one second passes for it.
TIMEOUT = """#!/bin/bash
echo "limit $3" >>"$CALLS"
exec /usr/bin/timeout -k 1 1 "${@:4}"
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
    run_captured(["bash", SCRIPT, "quality"], env={**environment, "SHARDS": str(tmp_path)}, timeout=60)
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


def test_failed_and_hung_stages_lose_no_other_stage(stand_ins, tmp_path):
    (environment, calls), out = stand_ins, tmp_path / "out"
    done = run_captured(["bash", SCRIPT], expect=1, env=environment, timeout=60)
    rows = dict(re.findall(r"^(\w+) +\d+ s  (.*)$", done.stdout, re.MULTILINE))
    assert list(rows) == STAGES
    assert rows["tests"] == rows["training"] == "FAILED: exit 1"
    assert rows["large"] == "FAILED: killed at its limit"
    assert {rows[name] for name in ("setup", "base", "muon", "kernels", "cudnn")} == {"ok"}
    written = ["base.json", "cudnn.json", "gpu_check.log", "kernels.json", "muon.json"]
    assert sorted(path.name for path in out.iterdir()) == written
    lines = calls.read_text().splitlines()
    limits = [int(line.split()[1]) for line in lines if line.startswith("limit")]
    commands = [line for line in lines if not line.startswith("limit")]
    assert len(limits) == len(commands)
    assert all(line.startswith("1 ") for line in commands), "CUDA must be looked for through NVML"
    # What a stage leaves unused is added to the next one's limit.
    assert limits[0] < limits[1] < max(limits) < 540


def test_named_test_files_and_benchmark_options_exist():
    text = SCRIPT.read_text()
    for path in re.findall(r"tests/(?:gpu|unit)/[\w/.]+", text):
        assert (REPOSITORY / path).exists(), path
    for subject in set(re.findall(r"\bbench (\w+)", text)):
        assert (REPOSITORY / "benchmarks" / subject).is_dir(), subject
