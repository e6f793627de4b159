"""A run writes and prints no secret of its configuration or environment."""

from __future__ import annotations

import os
from pathlib import Path

from runs import run_pretrain, small_config


def test_run_writes_and_prints_no_secret(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("COMET_API_KEY", "ENV-S3CRET")
    config = small_config(
        comet={"enabled": False, "api_key": "JSON-S3CRET"},
        training={"max_steps": 1, "eval_interval": 0, "checkpoint_interval": 1},
    )
    run_dir = tmp_path / "runs" / "one"
    done = run_pretrain(config, corpus, run_dir)
    assert "S3CRET" not in done.stdout + done.stderr
    files = [Path(folder) / name for folder, _, names in os.walk(run_dir) for name in names]
    assert {"config.json", "model.safetensors", "metrics.jsonl"} <= {path.name for path in files}
    assert [path for path in files if b"S3CRET" in path.read_bytes()] == []
