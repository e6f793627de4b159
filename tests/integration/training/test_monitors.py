"""TensorBoard, CSV and W&B show each step of a resumed run once."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys

import pytest
from runs import read_metrics, run_pretrain, small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bert_pld.checkpoint.format import list_checkpoints


@pytest.fixture(scope="module")
def resumed(corpus, tmp_path_factory):
    """A run of 6 steps that was resumed after step 4 and trained steps 5 and 6 twice."""
    run_dir = tmp_path_factory.mktemp("monitors") / "run"
    config = small_config(tensorboard={"enabled": True}, csv_monitor={"enabled": True}, training={"max_steps": 6})
    run_pretrain(config, corpus, run_dir)
    shutil.rmtree(list_checkpoints(run_dir / "checkpoints")[0])
    run_pretrain(config, corpus, run_dir)
    return run_dir


def test_csv_files_have_one_header_and_each_step_once(resumed):
    with open(resumed / "csv_monitor" / "run" / "train_loss.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "loss"]
    assert [int(samples) for samples, _ in rows] == [8, 16, 24, 32, 40, 48]
    assert [float(loss) for _, loss in rows] == pytest.approx(read_metrics(resumed))


def test_tensorboard_shows_each_step_once(resumed):
    events = EventAccumulator(str(resumed / "tensorboard" / "run")).Reload()
    scalars = events.Scalars("train/loss")
    assert [event.step for event in scalars] == [8, 16, 24, 32, 40, 48]
    assert [event.value for event in scalars] == pytest.approx(read_metrics(resumed), rel=1e-6)
    assert {"eval/mlm_loss", "train/theta", "train/kept_blocks", "train/tokens_per_s"} <= set(events.Tags()["scalars"])


def test_run_that_restarts_before_its_first_checkpoint_shows_each_step_once(corpus, tmp_path):
    run_dir, training = tmp_path / "run", {"max_steps": 2, "eval_interval": 0}
    config = small_config(tensorboard={"enabled": True}, csv_monitor={"enabled": True}, training=training)
    for _ in range(2):
        run_pretrain(config, corpus, run_dir)
        shutil.rmtree(run_dir / "checkpoints")
    assert len(read_metrics(run_dir)) == 2
    with open(run_dir / "csv_monitor" / "run" / "train_loss.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "loss"]
    assert [int(samples) for samples, _ in rows] == [8, 16]
    scalars = EventAccumulator(str(run_dir / "tensorboard" / "run")).Reload().Scalars("train/loss")
    assert [event.step for event in scalars] == [8, 16]


def test_resumed_run_stays_the_same_run_in_wandb(corpus, tmp_path):
    if subprocess.run([sys.executable, "-c", "import wandb"], capture_output=True).returncode:
        pytest.skip("wandb is not installed")
    config = small_config(wandb={"enabled": True, "project": "test"}, training={"max_steps": 6})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        for _ in range(2):
            run_pretrain(config, corpus, tmp_path / "run")
            shutil.rmtree(list_checkpoints(tmp_path / "run" / "checkpoints")[0])
    name = (tmp_path / "run" / "wandb_run_id").read_text().strip()
    offline = [path.name for path in (tmp_path / "run" / "wandb").iterdir() if path.name.startswith("offline-run")]
    assert len(offline) == 2
    assert all(path.endswith(name) for path in offline)
