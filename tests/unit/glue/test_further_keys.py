"""What `--deepspeed_config` may say to fine-tuning: a mistake is one line before anything is loaded."""

from __future__ import annotations

import json

import pytest
from repository import REPOSITORY

from bert_pld.cli import run
from bert_pld.finetune_glue import build_parser, main
from bert_pld.glue.further_keys import further_keys


def error_of(capsys, path, precision="fp32"):
    """The command's line about a file; it reads that before it looks for task and model."""
    given = ["--task", "CoLA", "--glue_dir", "nowhere", "--model", "nothing", "--output_dir", str(path.parent / "out")]
    with pytest.raises(SystemExit) as left:
        run(main, build_parser(), [*given, "--deepspeed_config", str(path), "--precision", precision])
    assert left.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("values", "precision", "message"),
    [
        ({"train_batch_size": 32}, "fp32", "train_batch_size: must not be there, for --batch_size says"),
        (
            {"train_micro_batch_size_per_gpu": 8},
            "fp32",
            "train_micro_batch_size_per_gpu: must not be there, for --batch",
        ),
        (
            {"gradient_accumulation_steps": 2},
            "fp32",
            "gradient_accumulation_steps: must not be there, for --batch_size",
        ),
        ({"gradient_clipping": 0.5}, "fp32", "gradient_clipping: must not be there, for gradients are clipped at 1"),
        ({"bf16": {"enabled": True}}, "fp32", "bf16: must not be there, for --precision says it"),
        ({"bf16": {"check_grad_overflow": False}}, "fp32", "bf16: must not be there, for --precision says it"),
        ({"bf16": {"enabled": False}}, "bf16", "bf16: must not be there, for --precision says it"),
        ({"fp16": {"enabled": True}}, "bf16", "fp16: must not be there, for --precision says it"),
        ({"bfloat16": {"enabled": True}}, "bf16", "bfloat16: must not be there, for --precision says it"),
        ({"torch_autocast": {"enabled": True}}, "fp32", "torch_autocast: must not be there, for --precision says it"),
        (
            {"optimizer": {"type": "Lamb"}},
            "fp32",
            "optimizer: must not be there, for it is AdamW, with --learning_rates",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, "fp32", "scheduler: must not be there, for rates rise and fall linearly"),
        ({"model": {"preset": "base"}}, "fp32", "model: must not be there, for it is pretraining's"),
        ({"data": {}}, "fp32", "data: must not be there, for it is pretraining's"),
        ({"training": {}}, "fp32", "training: must not be there, for it is pretraining's"),
        ({"progressive_layer_drop": {}}, "fp32", "progressive_layer_drop: must not be there, for it is pretraining's"),
        ({"zero_optimization": {"stage": 3}}, "fp32", "zero_optimization.stage: 3; must be 0, 1 or 2"),
        ({"zero_optimization": {"stage": "2"}}, "fp32", "zero_optimization.stage: '2'; must be 0, 1 or 2"),
        ({"zero_optimization": True}, "fp32", "zero_optimization: must be an object, is True"),
        ([], "fp32", "must be a JSON object, is a list"),
    ],
)
def test_a_key_that_an_option_has_is_one_line(values, precision, message, tmp_path, capsys):
    path = tmp_path / "further.json"
    path.write_text(json.dumps(values))
    line = error_of(capsys, path, precision)
    assert line.startswith("error: ")
    assert f"{path}: {message}" in line


def test_a_pretraining_configuration_is_refused_with_all_that_is_wrong_in_it(capsys):
    path = REPOSITORY / "configs" / "bert_base_pld_128.json"
    line = error_of(capsys, path)
    for key in ("train_batch_size", "optimizer", "scheduler", "progressive_layer_drop", "model", "data", "training"):
        assert key in line
    assert line.endswith("; allowed are other keys of DeepSpeed's, such as zero_optimization up to stage 2")


def test_other_keys_and_how_to_run_in_the_precision_chosen_are_taken(tmp_path):
    path = tmp_path / "further.json"
    values = {"zero_optimization": {"stage": 2}, "fp16": {"initial_scale_power": 8}, "wall_clock_breakdown": True}
    path.write_text(json.dumps(values))
    assert further_keys(path, "fp16") == values
    assert further_keys(None, "fp16") is None
