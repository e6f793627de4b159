"""The comparison's scripts reject invalid input before they install, build or train anything, and pass the rest on."""

import json
import os
import subprocess
import sys

import pytest
from repository import REPOSITORY
from runs import clean_environment

from benchmarks.paper.suite import plan_jobs
from benchmarks.paper.variants import load_scale
from bert_pld.config import load_config
from data_prep.__main__ import build_parser


def run_script(tmp_path, script, *arguments, **environment):
    """Run a script, which must fail without output; return its errors."""
    places = {"OUT": str(tmp_path / "out"), "BERT_PLD_VENV": str(tmp_path / "venv")}
    done = subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / script), *arguments],
        env={**clean_environment(), **places, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["reproduce.sh"], {}, "error: '': must be cpu or gpu"),
        (["reproduce.sh", "tpu"], {}, "error: 'tpu': must be cpu or gpu"),
        (["reproduce.sh", "cpu", "zero"], {}, "error: SEEDS: 'zero'; must be a number of at least 1"),
        (["reproduce.sh", "cpu", "0"], {}, "error: SEEDS: '0'; must be a number of at least 1"),
        (["reproduce.sh", "cpu"], {"GLUE": "nowhere"}, "error: GLUE: nowhere/CoLA/train.tsv not found"),
        (["reproduce_recipe.sh"], {"GLUE": "nowhere"}, "error: GLUE: nowhere/CoLA/train.tsv not found"),
        (["reproduce_recipe.sh", "0"], {}, "error: SEEDS: '0'; must be a number of at least 1"),
        (["compare_on_glue.sh", "narrow", "hub"], {}, "usage: bash scripts/compare_on_glue.sh narrow|base GLUE"),
        (["compare_on_glue.sh", "wide", "hub", "runs", "out", "m"], {}, "error: 'wide': must be narrow or base"),
        (["second_phase.sh", "one"], {}, "usage: bash scripts/second_phase.sh RUN_DIR DATA_DIR OUTPUT_DIR"),
        (["second_phase.sh", "nowhere", "shards", "out"], {}, "error: nowhere: has no given.json"),
    ],
)
def test_user_errors_are_one_line(arguments, environment, message, tmp_path):
    [line] = run_script(tmp_path, *arguments, **environment).splitlines()
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
    errors = run_script(tmp_path, "reproduce.sh", "cpu", GLUE=str(glue))
    assert errors == f"error: GLUE: {glue}/{missing} not found; must be the folder of the official download, or hub\n"
    assert list(tmp_path.iterdir()) == [glue]


def test_corpus_of_the_comparisons_has_both_lengths_and_a_worker_for_each_processor():
    script = 'source scripts/comparison_corpus.sh; python() { printf "%s\\n" "$@"; }'
    command = ["bash", "-euc", f'{script}; build_comparison_corpus "a folder" 1024 32 64']
    environment = {**clean_environment(), "WIKIPEDIA": "books=a b", "BOOKS": "text=c", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    module, *arguments = done.stdout.splitlines()[1:]
    options = build_parser().parse_args(arguments)
    assert (module, arguments[0]) == ("data_prep", "build")
    assert (options.source, options.vocab_size, options.seq_length) == (["books=a b", "text=c"], 1024, [32, 64])
    assert str(options.output_dir) == "a folder"
    assert options.workers == len(os.sched_getaffinity(0))


# Stands for python: notes the options of a training, and runs all else.
PYTHON = """#!/bin/bash
case "$*" in
"-m bert_pld.pretrain"*) printf '%s\\n' "${{@:3}}" >"$NOTED" ;;
*) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def second_phase(tmp_path):
    """Function that runs second_phase.sh after a run with a JSON, and returns the configuration of the training."""
    (tmp_path / "python").write_text(PYTHON.format(python=sys.executable))
    (tmp_path / "python").chmod(0o755)
    run_dir = tmp_path / "run"
    run_dir.mkdir()

    def start(config, *arguments, expect=0):
        (run_dir / "given.json").write_text(json.dumps(config))
        environment = {**clean_environment(), "NOTED": str(tmp_path / "noted")}
        environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
        command = ["bash", str(REPOSITORY / "scripts" / "second_phase.sh"), str(run_dir), "shards", "out", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == expect, done.stderr
        if expect:
            return done.stderr
        noted = (tmp_path / "noted").read_text().splitlines()
        changes = [line.removeprefix("--set=") for line in noted if line.startswith("--set=")]
        given = ["--deepspeed_config", str(run_dir / "given.json"), "--initialize_from", str(run_dir)]
        assert noted[: len(noted) - len(changes)] == [*given, "--data_dir", "shards", "--output_dir", "out"]
        return load_config(run_dir / "given.json", changes)

    return start


@pytest.mark.parametrize(
    ("scale", "variant", "rates"),
    [
        ("recipe_cpu_8_long", "dense_muon", {"lr": 0.0007, "muon_lr": 0.0014}),
        ("recipe_cpu_8_long", "tokens_muon", {"lr": 0.0007, "muon_lr": 0.0014}),
        ("cpu_long", "pre_ln_high_lr", {"lr": 0.0005}),
        ("cpu_long", "pld_sample", {"lr": 0.0005}),
        ("cpu_long", "post_ln", {"lr": 0.00025}),
    ],
)
def test_second_phase_trains_at_a_quarter_of_the_first_rates(scale, variant, rates, second_phase, tmp_path):
    (job,) = plan_jobs(load_scale(scale), tmp_path / "runs", 1, [variant])
    config = second_phase(job.config)
    params = config.deepspeed["optimizer"]["params"]
    assert {name: params[name] for name in params if name.endswith("lr")} == rates
    assert (config.data.seq_length, config.training.max_steps) == (64, 1500)


def test_second_phase_takes_more_changes_of_the_configuration(second_phase, tmp_path):
    (job,) = plan_jobs(load_scale("recipe_cpu_8_long"), tmp_path / "runs", 1, ["tokens_muon"])
    config = second_phase(job.config, "--set=progressive_layer_drop.enabled=false", "--set=training.max_steps=7")
    assert not config.progressive_layer_drop.enabled
    assert (config.data.seq_length, config.training.max_steps) == (64, 7)


def test_second_phase_of_a_run_without_a_rate_is_an_error_of_one_line(second_phase, tmp_path):
    errors = second_phase({"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}, expect=1)
    given = tmp_path / "run" / "given.json"
    assert errors == f"error: {given}: optimizer.params.lr: 'auto'; must be a number\n"
    assert not (tmp_path / "noted").exists()
