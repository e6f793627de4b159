"""Two nodes of a hostfile without Slurm: a `deepspeed` launcher on each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from runs import clean_environment, free_port, pretrain_command, read_metrics, run_pretrain, small_config


@pytest.mark.launcher
def test_one_launcher_on_each_node_trains_one_run(corpus, tmp_path):
    config = small_config(training={"max_steps": 4, "eval_interval": 0}, model={"hidden_dropout": 0.0})
    config["model"]["attention_dropout"] = 0.0
    (tmp_path / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    launcher = str(Path(sys.executable).parent / "deepspeed")
    launcher_options = ["--hostfile", str(tmp_path / "hostfile"), "--no_ssh", "--master_addr", "127.0.0.1"]
    launcher_options += ["--master_port", str(free_port())]
    program = pretrain_command(config, corpus, tmp_path / "run")[2:]
    nodes = [
        subprocess.Popen(
            [launcher, *launcher_options, "--node_rank", str(rank), "--module", *program],
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    run_pretrain({**config, "train_micro_batch_size_per_gpu": 8}, corpus, tmp_path / "alone")
    assert read_metrics(tmp_path / "run") == pytest.approx(read_metrics(tmp_path / "alone"), rel=1e-5)
