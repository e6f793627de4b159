"""`--deepspeed_config` of fine-tuning: a mistake is reported in one line, before anything is loaded."""

from __future__ import annotations

import json

import pytest
from repository import REPOSITORY

from bert_pld.cli import run
from bert_pld.finetune_glue import build_parser, main, read_deepspeed_overrides


def error_of(capsys, path, precision="fp32"):
    """Return the error line of the command for a file, which it reads before it loads the task and the model."""
    given = ["--task", "CoLA", "--glue_dir", "nowhere", "--model", "nothing", "--output_dir", str(path.parent / "out")]
    with pytest.raises(SystemExit) as exited:
        run(main, build_parser(), [*given, "--deepspeed_config", str(path), "--precision", precision])
    assert exited.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    return line


BATCH, PRECISION, PRETRAINING = "use --batch_size", "use --precision", "it is for pretraining only"


@pytest.mark.parametrize(
    ("key", "value", "precision", "reason"),
    [
        ("train_batch_size", 32, "fp32", BATCH),
        ("train_micro_batch_size_per_gpu", 8, "fp32", BATCH),
        ("gradient_accumulation_steps", 2, "fp32", BATCH),
        ("gradient_clipping", 0.5, "fp32", "gradients are always clipped at 1"),
        ("bf16", {"enabled": True}, "fp32", PRECISION),
        ("bf16", {"check_grad_overflow": False}, "fp32", PRECISION),
        ("bf16", {"enabled": False}, "bf16", PRECISION),
        ("fp16", {"enabled": True}, "bf16", PRECISION),
        ("bfloat16", {"enabled": True}, "bf16", PRECISION),
        ("torch_autocast", {"enabled": True}, "fp32", PRECISION),
        ("optimizer", {"type": "Lamb"}, "fp32", "it is always AdamW; use --learning_rates"),
        ("scheduler", {"type": "WarmupLR"}, "fp32", "it is always a linear warm-up and decay; use --learning_rates"),
        ("model", {"preset": "base"}, "fp32", PRETRAINING),
        ("data", {}, "fp32", PRETRAINING),
        ("training", {}, "fp32", PRETRAINING),
        ("progressive_layer_drop", {}, "fp32", PRETRAINING),
    ],
)
def test_key_that_an_option_sets_is_refused_in_one_line(key, value, precision, reason, tmp_path, capsys):
    path = tmp_path / "overrides.json"
    path.write_text(json.dumps({key: value}))
    line = error_of(capsys, path, precision)
    assert line.startswith(f"error: --deepspeed_config {path}: {key}: not allowed in fine-tuning, {reason}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage: 3; must be 0, 1 or 2"),
        ({"zero_optimization": {"stage": "2"}}, "zero_optimization.stage: '2'; must be 0, 1, 2 or 3"),
        ({"zero_optimization": "on"}, "zero_optimization: must be an object, is 'on'"),
        ({"zero_optimization": {"stage": "auto"}}, "zero_optimization.stage: 'auto'; must be 0, 1, 2 or 3"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
            "zero_optimization.offload_optimizer.device: nvme; must be none or cpu",
        ),
        ({"amp": {"enabled": True}}, "amp: not allowed in fine-tuning, use --precision"),
        ({"nebula": {"enabled": True}}, "nebula: DeepSpeed has removed it"),
        ([], "must be a JSON object, is a list"),
    ],
)
def test_invalid_file_is_refused_in_one_line(values, message, tmp_path, capsys):
    path = tmp_path / "overrides.json"
    path.write_text(json.dumps(values))
    line = error_of(capsys, path)
    assert line.startswith("error: ")
    assert f"{path}: {message}" in line


def test_pretraining_configuration_is_refused_with_all_its_faults(capsys):
    path = REPOSITORY / "configs" / "bert_base_pld_128.json"
    line = error_of(capsys, path)
    for key in ("train_batch_size", "optimizer", "scheduler", "progressive_layer_drop", "model", "data", "training"):
        assert key in line
    assert line.endswith("; other DeepSpeed keys are allowed, such as zero_optimization up to stage 2")


def test_other_keys_and_settings_of_the_chosen_precision_are_accepted(tmp_path):
    path = tmp_path / "overrides.json"
    values = {"zero_optimization": {"stage": 2}, "fp16": {"initial_scale_power": 8}, "wall_clock_breakdown": True}
    path.write_text(json.dumps(values))
    assert read_deepspeed_overrides(path, "fp16") == values
    assert read_deepspeed_overrides(None, "fp16") is None
    path.write_text('{"optimizer": null, "zero_optimization": true, // old\n "prescale_gradients": "false",}')
    read = {"zero_optimization": {"stage": 1}, "prescale_gradients": False}
    assert read_deepspeed_overrides(path, "fp32") == read
