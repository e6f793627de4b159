"""`sbatch` on two nodes: data preparation, then pretraining that is preempted and resumes bitwise by itself."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time

import pytest
from repository import REPOSITORY
from runs import logged_lines, read_metrics, run_captured, small_config, wait_until
from slurm_cluster import SlurmCluster, require_slurm

from bert_pld.checkpoint.format import list_checkpoints
from bert_pld.files import RUN_LOCK

SCRIPTS = REPOSITORY / "scripts" / "slurm"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
STEPS = 200
"""Enough for three interruptions, each noticed some tens of steps late."""


@pytest.fixture(scope="module")
def cluster():
    require_slurm()
    with SlurmCluster(kill_wait_s=20) as cluster:
        cluster.environment |= {"REPOSITORY": str(REPOSITORY), "BERT_PLD_VENV": sys.prefix}
        cluster.environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(cluster.folder)}
        yield cluster


def submit(cluster, script, folder, *arguments, options=(), **variables):
    """Submit a batch script whose log is `folder/<job>.log`; returns the job's number."""
    environment = {**cluster.environment, **{name: str(value) for name, value in variables.items()}}
    command = ["sbatch", "--parsable", f"--output={folder}/%j.log", *options, str(SCRIPTS / script), *arguments]
    return run_captured(command, env=environment, cwd=folder).stdout.strip()


def job_fields(cluster, job):
    """Return the fields of `scontrol show job`, such as state, exit code and restarts."""
    shown = cluster.output("scontrol", "show", "job", job)
    return dict(part.split("=", 1) for part in shown.split() if "=" in part)


def fields_without_requeue_delay(cluster, job):
    """Return the fields of a job; let a requeued one start in 3 s instead of Slurm's two minutes.

    It cannot start at once, because a node refuses a job for a second after its end.
    """
    current = job_fields(cluster, job)
    if current["JobState"] == "PENDING" and current["Reason"] == "BeginTime" and current["EligibleTime"] != "Unknown":
        begins = time.mktime(time.strptime(current["EligibleTime"], "%Y-%m-%dT%H:%M:%S"))
        if begins > time.time() + 10:
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now+3"], env=cluster.environment)
    return current


def finish(cluster, job, folder):
    """Wait until a job has ended; return its fields."""
    log = folder / f"{job}.log"

    def has_ended():
        return fields_without_requeue_delay(cluster, job)["JobState"] in ENDED

    wait_until(has_ended, describe=log.read_text, pause_s=0.1)
    return job_fields(cluster, job)


@pytest.fixture(scope="module")
def shards(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text of a job")
    rng = random.Random(0)
    syllables = ["ba", "ke", "li", "mo", "nu", "ras", "tig"]
    words = ["".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(400)]
    documents = (" ".join(" ".join(rng.choices(words, k=8)).capitalize() + "." for _ in range(12)) for _ in range(80))
    (folder / "text.txt").write_text("\n\n".join(documents) + "\n")
    arguments = ["--source", f"text={folder}/text.txt", "--vocab_size", "300", "--seq_length", "32"]
    arguments += ["--validation_fraction", "0.1", "--deduplicate", "none"]
    job = submit(cluster, "data_prep.sbatch", folder, *arguments, OUTPUT_DIR=folder / "shards")
    assert finish(cluster, job, folder)["ExitCode"] == "0:0", (folder / f"{job}.log").read_text()
    assert "done" in (folder / f"{job}.log").read_text()
    return folder / "shards"


@pytest.fixture(scope="module")
def variables(shards, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "c.json"
    config = small_config(training={"max_steps": STEPS, "checkpoint_interval": 30, "eval_interval": 0})
    path.write_text(json.dumps(config))
    return {"CONFIG": path, "DATA_DIR": shards}


TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


@pytest.fixture(scope="module")
def uninterrupted(cluster, variables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    job = submit(cluster, "pretrain.sbatch", folder, options=TWO_NODES, OUTPUT_DIR=folder / "run", **variables)
    ended = finish(cluster, job, folder)
    assert (ended["ExitCode"], ended["Restarts"]) == ("0:0", "0"), (folder / f"{job}.log").read_text()
    return read_metrics(folder / "run")


def test_job_on_two_nodes_resumes_bitwise_after_two_preemptions_and_a_kill(cluster, variables, uninterrupted, tmp_path):
    folder = tmp_path / "it's a $(touch folder)"  # No shell may interpret it.
    folder.mkdir()
    run_dir = folder / "run"
    job = submit(cluster, "pretrain.sbatch", tmp_path, options=TWO_NODES, OUTPUT_DIR=run_dir, **variables)
    log = tmp_path / f"{job}.log"
    stopped = []
    for stop_it in ("scontrol requeue", "scancel --signal=USR1", "kill -9"):
        enough = logged_lines(run_dir) + 10

        def is_training(enough=enough):
            if logged_lines(run_dir) < enough:  # Slurm's answer takes the time of several steps.
                fields_without_requeue_delay(cluster, job)
            return logged_lines(run_dir) >= enough

        wait_until(is_training, describe=log.read_text, pause_s=0.1)
        target = job if stop_it != "kill -9" else str(json.loads((run_dir / RUN_LOCK).read_text())["pid"])
        subprocess.run([*stop_it.split(), target], env=cluster.environment, check=True)
        wait_until(lambda: job_fields(cluster, job)["JobState"] == "PENDING", describe=log.read_text, pause_s=0.1)
        stopped.append(int(list_checkpoints(run_dir / "checkpoints")[0].name.split("_")[1]))
        if stop_it != "kill -9":
            assert stopped[-1] == logged_lines(run_dir)
    ended = finish(cluster, job, tmp_path)
    output = log.read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "3"), output
    assert read_metrics(run_dir) == uninterrupted
    for start in (1, 2, 3, 4):
        assert f"on 2 node(s) (node[1-2]), 2 task(s), start {start}," in output
    assert output.count("stopped by a signal, checkpoint saved") == 2
    assert "error: rank 0 (host" in output
    assert "exited unexpectedly" in output
    assert f"job {job}: lost a rank (exit 137), fault 1 of at most 3; requeued" in output
    assert output.count("; requeued") == 2
    for step in stopped:
        assert f"resuming after step {step} from checkpoint" in output
    assert output.rstrip().endswith(f"job {job}: done")
    assert [path.name for path in tmp_path.iterdir() if path.name == "folder"] == []


def test_error_ends_the_job_without_a_requeue(cluster, variables, tmp_path):
    job = submit(cluster, "pretrain.sbatch", tmp_path, OUTPUT_DIR=tmp_path / "run", **{**variables, "CONFIG": "/none"})
    ended = finish(cluster, job, tmp_path)
    output = (tmp_path / f"{job}.log").read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "0")
    assert "error: /none: cannot read the configuration" in output
    assert f"job {job}: failed (exit 1); see the error above; not requeued" in output
    assert os.listdir(tmp_path / "run") == []


def test_missing_variable_is_a_one_line_error(cluster, tmp_path):
    job = submit(cluster, "pretrain.sbatch", tmp_path, CONFIG="c.json", DATA_DIR="shards")
    assert finish(cluster, job, tmp_path)["JobState"] == "FAILED"
    assert "OUTPUT_DIR: the folder of the run" in (tmp_path / f"{job}.log").read_text()
