"""Random mistakes in every shipped configuration: one line each, no hang, and never a run of something else."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import warnings

import pytest
from json_mutations import mutate
from repository import REPOSITORY
from set_up import disagreements, set_up, train_one_step, write_json

from bert_pld.config import read_json
from bert_pld.data.nvidia_rows import open_rows
from bert_pld.plan import format_plan, make_plan

SHIPPED = sorted(path for path in (REPOSITORY / "configs").rglob("*.json") if path.parent.name != "scales")
SIZES = {
    "preset": None, "hidden_size": 16, "num_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "hidden_dropout": 0.1, "kernels": "auto",
}  # fmt: skip
LONGEST_S = 10


pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module")
def rows(corpus):
    return open_rows(corpus, "train")


def small(path):
    """Return a shipped configuration with sizes that train in milliseconds on a CPU."""
    config = read_json(path)
    config["model"] = {**config.get("model", {}), **SIZES}
    config["data"] = {**config.get("data", {}), "seq_length": 32, "workers": 0}
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        config.pop(key, None)
    config |= {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4}
    if "fp16" in config:
        config["fp16"]["enabled"] = False
    return config


@contextlib.contextmanager
def limit(seconds):
    """Raise a TimeoutError after these seconds of computing, or a minute of waiting; other tests share the cores."""

    def stop(*_):
        raise TimeoutError(f"more than {seconds} s")

    before = [signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def verdict(config, rows, folder):
    """Set up, plan and train a step; return the line of the mistake, or None."""
    path = write_json(folder / "config.json", json.dumps(config))
    try:
        run, engine = set_up(path, rows, folder, overrides=())
    except ValueError as error:
        line = str(error)
        assert line.startswith((f"{path}: ", "data directory ")), line
        assert "\n" not in line
        return line
    assert disagreements(run, engine) == []
    assert "memory per rank" in format_plan(make_plan(run))
    if run.deepspeed["train_batch_size"] <= 1000:  # A step of more sequences takes its time.
        assert math.isfinite(train_one_step(run, engine, rows))
    return None


def test_configurations_without_a_mistake_train(rows, tmp_path):
    """Otherwise the test below would show nothing."""
    for path in SHIPPED[:: len(SHIPPED) // 5]:
        assert verdict(small(path), rows, tmp_path) is None


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.thorough)])
def test_random_mistake_is_one_line_or_changes_nothing_silently(count, rows, tmp_path):
    rng = random.Random(int(os.environ.get("BERT_PLD_FUZZ_SEED", "0")))
    wrong = []
    for number in range(count):
        path = SHIPPED[number % len(SHIPPED)]
        config, change, must_fail = mutate(small(path), rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with limit(LONGEST_S):
                    line = verdict(config, rows, tmp_path)
            except Exception as error:
                wrong.append(f"{path.name}: {change}: {type(error).__name__}: {error}")
                continue
        if must_fail and line is None:
            wrong.append(f"{path.name}: {change}: accepted")
    assert wrong == [], "\n" + "\n".join(wrong)
