"""`python -m bert_pld.plan` on a DeepSpeed configuration of the published project."""

import json
import sys

import pytest
from published_config import PUBLISHED_CONFIG
from runs import run_captured


def test_command_prints_and_writes_the_plan(tmp_path):
    config, out = tmp_path / "client.json", tmp_path / "plan.json"
    config.write_text(PUBLISHED_CONFIG)
    command = [sys.executable, "-m", "bert_pld.plan", "--deepspeed_config", config, "--world_size"]
    result = run_captured([*command, "64", "--json", out])
    assert "4,096 sequences = 16 micro-batch × 4 accumulation × 64 rank(s)" in result.stdout
    assert "expected depth 8.75 at the limit (27.1% of the blocks' compute saved)" in result.stdout
    assert "within 1 % of the limit: from step 4,606" in result.stdout
    plan = json.loads(out.read_text())
    assert plan["depth_at_limit"] == 8.75
    assert plan["model"]["vocab_size"] == 30_528
    assert plan["memory"]["total_bytes"] > 12 * plan["parameters"]

    run_captured([*command, "64", "--assume", "inter_bytes_per_s=1e9", "--json", out])
    assert json.loads(out.read_text())["scaling"][-1]["step"]["exposed"] > 5 * plan["scaling"][-1]["step"]["exposed"]

    result = run_captured([*command, "60"], expect=1)
    assert result.stdout == ""
    assert result.stderr.startswith("error: train_batch_size: 4096; must be")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("optimizer.type=Muonn", "optimizer.type: 'Muonn' is unknown, did you mean 'Muon'?; valid: "),
        ("optimizer.params.momentun=0.9", "optimizer.params.momentun: unknown key for Adam"),
        ("hybrid_engine.enabled=true", "hybrid_engine.enabled: true; pretraining does not support it"),
    ],
)
def test_what_pretraining_refuses_is_refused_before_the_json_is_written(tmp_path, given, complaint):
    config, out = tmp_path / "client.json", tmp_path / "plan.json"
    config.write_text(PUBLISHED_CONFIG)
    command = [sys.executable, "-m", "bert_pld.plan", "--deepspeed_config", config, "--set", given, "--json", out]
    result = run_captured(command, expect=1)
    assert result.stdout == ""
    assert f"error: {config}: {complaint}" in result.stderr
    assert not out.exists()
