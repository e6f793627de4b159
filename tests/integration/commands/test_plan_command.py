"""`python -m bert_pld.plan` on a DeepSpeed configuration of the published project."""

import json
import subprocess
import sys

from published_config import PUBLISHED_CONFIG


def test_command_prints_and_writes_the_plan(tmp_path):
    config, out = tmp_path / "client.json", tmp_path / "plan.json"
    config.write_text(PUBLISHED_CONFIG)
    command = [sys.executable, "-m", "bert_pld.plan", "--deepspeed_config", config, "--world_size"]
    result = subprocess.run([*command, "64", "--json", out], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "4,096 sequences = 16 micro-batch × 4 accumulation × 64 rank(s)" in result.stdout
    assert "expected depth 8.75 at the limit (27.1% of the blocks' compute saved)" in result.stdout
    assert "within 1 % of the limit: from step 4,606" in result.stdout
    plan = json.loads(out.read_text())
    assert plan["depth_at_limit"] == 8.75
    assert plan["model"]["vocab_size"] == 30_528
    assert plan["memory"]["total_bytes"] > 12 * plan["parameters"]

    slower = ["64", "--assume", "inter_bytes_per_s=1e9", "--json", out]
    result = subprocess.run([*command, *slower], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(out.read_text())["scaling"][-1]["step"]["exposed"] > 5 * plan["scaling"][-1]["step"]["exposed"]

    result = subprocess.run([*command, "60"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: train_batch_size: 4096; must be")
    assert result.stderr.count("\n") == 1
