"""The bench's subjects on tiny sizes: that the figures are there and add up, not how high they are."""

import json

import pytest
import torch

from bert_pld import cli
from bert_pld.bench import __main__ as bench
from bert_pld.bench import _contenders, train

TINY = [
    "--num_layers=4", "--hidden_size=32", "--num_attention_heads=2", "--vocab_size=64", "--micro_batch_size=4",
    "--seq_length=16", "--rounds=2", "--steps_per_round=3", "--device=cpu",
]  # fmt: skip


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.run(bench.main, bench.build_parser(arguments[0]), arguments[1:])
    return stopped.value.code


def test_train_measures_every_contender(tmp_path, capsys):
    assert run("train", *TINY, "--dtypes=fp32", "--json", str(tmp_path / "train.json")) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "train.json").read_text())
    assert [one["name"] for one in result["contenders"]] == ["hugging_face", "reference", "pld_batch", "pld_sample"]
    assert result["loss_difference"] < 1e-5
    by_name = {one["name"]: one for one in result["contenders"]}
    assert by_name["hugging_face"]["speed_over_hugging_face_fp32"] == 1.0
    for one in by_name.values():
        low, high = one["tokens_per_s_range"]
        assert 0 < low <= one["tokens_per_s"] <= high
        assert one["name"] in printed
    for name in ("pld_batch", "pld_sample"):
        assert by_name[name]["depth_expected"] == pytest.approx((3 * 4 - 1) / 4)
        assert by_name[name]["predicted_of_expectation"] < 1
        assert by_name[name]["time_over_reference"] > 0
    # exact counts: 2.75 of 4 blocks on average, from one micro-batch to the next never off by more than a row
    assert by_name["pld_sample"]["depth_drawn"] == pytest.approx(2.75, abs=1 / 4)


def test_peer_that_crawls_in_a_dtype_is_left_out_and_said(monkeypatch, capsys):
    monkeypatch.setattr(train, "matmul_gflops", lambda dtype, device: 100.0 if dtype == torch.float32 else 1.5)
    assert run("train", *TINY, "--dtypes=fp32,bf16", "--contenders=hugging_face,reference") == 0
    printed = capsys.readouterr().out
    assert "bf16  reference" in printed
    assert (
        "bf16  hugging_face left out: matrix products at 1.5 GFLOP/s against fp32's 100; --force measures it" in printed
    )
    assert printed.count("reference ") == 2


def test_contenders_see_the_same_targets():
    options = bench.build_parser("train").parse_args(TINY)
    config = train._model_config(options)
    batch = _contenders.random_batch(config, 4, 16, torch.device("cpu"), seed=1)
    again = _contenders.random_batch(config, 4, 16, torch.device("cpu"), seed=1)
    assert torch.equal(batch.input_ids, again.input_ids)
    assert torch.equal(batch.labels.flatten()[batch.masked_positions], batch.masked_labels)
    assert (batch.labels != -100).sum(1).tolist() == [2, 2, 2, 2]
    assert batch.masked_positions.numel() == 8


def test_preset_gives_its_sizes():
    options = bench.build_parser("train").parse_args(["--model_preset=small", "--num_layers=2"])
    config = train._model_config(options)
    assert (config.hidden_size, config.num_layers, config.num_attention_heads, config.vocab_size) == (512, 2, 8, 8192)


def test_mistakes_are_one_line(capsys):
    for arguments, message in (
        (("--dtypes=fp8",), "--dtypes fp8: must be a list of fp32, bf16"),
        (("--contenders=apex",), "--contenders apex: must be a list of hugging_face, reference"),
        (("--hidden_size=30", "--num_attention_heads=4"), "hidden_size: 30; must be a multiple of"),
        (("--rounds=0",), "--rounds 0: must be at least 1"),
    ):
        assert run("train", *arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error


def test_help_lists_the_subjects(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.build_parser(None).parse_args(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "train     Training throughput" in printed
    assert "example:\n  python -m bert_pld.bench train" in printed
    assert "_contenders" not in printed
