"""Fine-tuning through the command, on a synthetic task that a tiny encoder can learn."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from finetune_runs import finetune, finetune_command, result_of
from hugging_face_models import save_stock
from repository import REPOSITORY
from runs import SEQ_LENGTH, clean_environment, error_of, free_port, run_captured

from bert_pld.finetuning.encoder import identify_weights, load_encoder
from bert_pld.glue.data import identify_data
from bert_pld.glue.summary import table
from bert_pld.glue.tasks import TASKS

COMPARISON = REPOSITORY / "scripts" / "measure" / "compare_with_trainer.py"


@pytest.fixture(scope="module")
def finished(glue_dir, checkpoint, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("finetuned") / "out"
    done = finetune(glue_dir, checkpoint, output_dir, "--seeds", "1", "2")
    return output_dir, done.stdout


def test_task_is_learnt_and_predictions_are_written(finished):
    output_dir, printed = finished
    result = result_of(output_dir)
    assert result["dev"]["dev"]["accuracy"] > 90
    losses = [epoch["loss"] for epoch in result["epochs"]]
    assert losses[-1] < 0.5 * losses[0]
    best = max(result["epochs"], key=lambda epoch: epoch["dev"]["dev"]["accuracy"])
    assert result["best_epoch"] == best["epoch"]
    predictions = (output_dir / "SST-2" / "lr_0.003_seed_1" / "SST-2.tsv").read_text().splitlines()
    assert predictions[0] == "index\tprediction"
    assert [line.split("\t")[0] for line in predictions[1:]] == [str(i) for i in range(7)]
    assert {line.split("\t")[1] for line in predictions[1:]} <= {"0", "1"}
    summary = json.loads((output_dir / "summary.json").read_text())
    scores = [result_of(output_dir, seed)["dev"]["dev"]["accuracy"] for seed in (1, 2)]
    task = summary["tasks"]["SST-2"]
    assert task["score"] == pytest.approx({"mean": np.mean(scores), "deviation": np.std(scores, ddof=1), "n": 2})
    assert (task["conditions"]["epochs"], task["conditions"]["max_seq_length"]) == (3, 32)
    assert not {"model", "seed"} & set(task["conditions"])
    assert task["versions"]["torch"] == torch.__version__
    assert (output_dir / "summary.md").read_text() in printed


def test_summarize_prints_writes_and_plots_the_figures(finished, tmp_path):
    output_dir, _ = finished
    options = ["--summarize", str(output_dir), "--json", str(tmp_path / "glue.json"), "--plot", str(tmp_path / "g.png")]
    command = [sys.executable, "-m", "bert_pld.finetune_glue", *options]
    printed = run_captured(command).stdout
    figures = json.loads((tmp_path / "glue.json").read_text())
    assert printed == table(figures)
    assert f"| {output_dir.name} | {figures[output_dir.name]['tasks']['SST-2']['score']['mean']:.1f}" in printed
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")


def test_finished_fine_tunings_are_skipped_and_other_settings_are_refused(finished, glue_dir, checkpoint, tmp_path):
    output_dir, _ = finished
    before = (output_dir / "SST-2" / "lr_0.003_seed_1" / "result.json").stat().st_mtime_ns
    again = finetune(glue_dir, checkpoint, output_dir, "--seeds", "1", "2")
    assert "SST-2: 2 fine-tunings, 2 of them done" in again.stdout
    assert (output_dir / "SST-2" / "lr_0.003_seed_1" / "result.json").stat().st_mtime_ns == before
    refused = finetune(glue_dir, checkpoint, output_dir, "--seeds", "1", "--epochs", "2", expect=1)
    assert "holds a result with epochs = 3, not 2; give another --output_dir" in error_of(refused)
    sibling = finetune(glue_dir, checkpoint, output_dir, "--seeds", "3", "--epochs", "2", expect=1)
    assert "lr_0.003_seed_1: holds a result with epochs = 3, not 2; give another --output_dir" in error_of(sibling)
    assert not (output_dir / "SST-2" / "lr_0.003_seed_3").exists()
    moved = shutil.copytree(checkpoint, tmp_path / "moved")  # a copy of the weights is the same model
    finetune(glue_dir, moved, output_dir, "--seeds", "1", "2")
    fresh = finetune(glue_dir, checkpoint, output_dir, "--seeds", "1", "--from_scratch", expect=1)
    assert "holds a result with from_scratch = False, not True" in fresh.stderr


def test_identity_of_weights_depends_on_their_bytes(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"1")
    first = identify_weights(str(tmp_path))
    (tmp_path / "a.safetensors").write_bytes(b"2")
    assert first != identify_weights(str(tmp_path))
    assert identify_weights("bert-base-uncased") == "bert-base-uncased"


def test_identity_of_data_depends_on_train_and_dev_files(glue_dir, tmp_path):
    before = identify_data(TASKS["SST-2"], str(glue_dir))
    moved = shutil.copytree(glue_dir, tmp_path / "moved")
    assert identify_data(TASKS["SST-2"], str(moved)) == before
    seen = {before}
    for name in ("dev.tsv", "train.tsv"):
        with open(moved / "SST-2" / name, "a") as file:
            file.write("w7 w8\t1\n")
        seen.add(identify_data(TASKS["SST-2"], str(moved)))
    assert len(seen) == 3
    (moved / "SST-2" / "train.tsv").unlink()
    with pytest.raises(ValueError, match=r"train.tsv not found, required for SST-2"):
        identify_data(TASKS["SST-2"], str(moved))
    assert identify_data(TASKS["SST-2"], "hub") == "nyu-mll/glue"
    assert identify_data(TASKS["SST-2"], "hub=some/copy") == "some/copy"


def test_patience_stops_training_without_progress(glue_dir, checkpoint, tmp_path):
    finetune(glue_dir, checkpoint, tmp_path / "out", "--seeds", "1", "--epochs", "12", "--patience", "2")
    result = result_of(tmp_path / "out")
    assert result["conditions"]["data"] == identify_data(TASKS["SST-2"], str(glue_dir))
    scores = [epoch["dev"]["dev"]["accuracy"] for epoch in result["epochs"]]
    assert len(scores) == result["best_epoch"] + 2 < 12
    assert scores.index(max(scores)) == result["best_epoch"] - 1
    assert result["dev"]["dev"]["accuracy"] == max(scores)


def test_dropout_option_changes_training(finished, glue_dir, checkpoint, tmp_path):
    finetune(glue_dir, checkpoint, tmp_path / "out", "--seeds", "1", "--dropout", "0.5")
    without, with_dropout = result_of(finished[0]), result_of(tmp_path / "out")  # the checkpoint has no dropout
    assert (without["conditions"]["dropout"], with_dropout["conditions"]["dropout"]) == (None, 0.5)
    assert with_dropout["epochs"][-1]["loss"] > 1.5 * without["epochs"][-1]["loss"]


def test_bf16_learns_like_fp32(finished, glue_dir, checkpoint, tmp_path):
    finetune(glue_dir, checkpoint, tmp_path / "out", "--seeds", "1", "--precision", "bf16")
    fp32, bf16 = result_of(finished[0]), result_of(tmp_path / "out")
    assert bf16["conditions"]["precision"] == "bf16"
    assert bf16["dev"]["dev"]["accuracy"] > 90
    first, second = ([epoch["loss"] for epoch in result["epochs"]] for result in (fp32, bf16))
    assert second != first
    assert second[0] == pytest.approx(first[0], rel=0.05)


@pytest.mark.thorough
def test_transformers_trainer_reaches_similar_scores(glue_dir, checkpoint, tmp_path):
    command = [sys.executable, COMPARISON, "--model", checkpoint, "--task", "SST-2", "--glue_dir", glue_dir]
    settings = ["--learning_rate", "3e-3", "--batch_size", "16", "--max_seq_length", "32", "--seeds", "1", "2"]
    run_captured([*command, *settings, "--json", tmp_path / "both.json"])
    result = json.loads((tmp_path / "both.json").read_text())
    assert min(min(scores) for scores in result["scores"].values()) > 90
    assert abs(result["difference"]) < 5


def test_comparison_with_trainer_refuses_several_gpus(monkeypatch):
    """The number of GPUs is replaced; the script checks it before anything else."""
    monkeypatch.syspath_prepend(COMPARISON.parent)
    script = importlib.import_module("compare_with_trainer")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    message = r"^CUDA_VISIBLE_DEVICES: 4 GPUs are visible, and .* 4 times as large; must be one"
    with pytest.raises(ValueError, match=message):
        script.main(argparse.Namespace())
    for allowed in (0, 1):
        script.refuse_several_gpus(allowed)


@pytest.mark.launcher
def test_two_ranks_have_the_losses_and_scores_of_one_rank(finished, glue_dir, checkpoint, tmp_path):
    finetune(glue_dir, checkpoint, tmp_path / "out", "--seeds", "1", ranks=2)
    one, two = result_of(finished[0]), result_of(tmp_path / "out")
    losses = [[epoch["loss"] for epoch in result["epochs"]] for result in (one, two)]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-4)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    for a, b in zip(one["epochs"], two["epochs"], strict=True):
        assert b["dev"]["dev"]["accuracy"] == pytest.approx(a["dev"]["dev"]["accuracy"], abs=1.0)


def test_rank_that_alone_has_no_data_names_itself(glue_dir, checkpoint, tmp_path):
    """As on a second machine without the folder: rank 0 waits in a collective for a rank that has ended."""
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    missing = tmp_path / "missing"
    with contextlib.ExitStack() as stack:
        ranks = []
        for rank, folder in enumerate((glue_dir, missing)):
            command = finetune_command(folder, checkpoint, tmp_path / "out")
            environment = {**clean_environment(), **group, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
            ranks.append(stack.enter_context(subprocess.Popen(command, env=environment, **pipes)))
            stack.callback(ranks[-1].kill)
        _, printed = ranks[1].communicate(timeout=120)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert ranks[1].returncode == 1
    assert len(errors) == 1
    assert errors[0].startswith(f"error: rank 1 (host {socket.gethostname()}): ")
    assert str(missing) in errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_seq_length", "512"], "--max_seq_length 512: must be at most 64, the model's positions"),
        (["--precision", "fp16"], "--precision fp16: requires a GPU"),
        (["--dropout", "1"], r"--dropout 1: must be in \[0, 1\)"),
        (["--batch_size", "0"], "--batch_size 0: must be a positive multiple of 1 rank"),
    ],
)
def test_invalid_options_are_reported_in_one_line(glue_dir, checkpoint, tmp_path, arguments, message):
    if torch.cuda.is_available() and "fp16" in arguments:
        pytest.skip("has a GPU")
    done = finetune(glue_dir, checkpoint, tmp_path / "out", *arguments, expect=1)
    assert re.search(message, error_of(done))


def test_dropout_is_the_configurations_unless_given(exported):
    from transformers import DistilBertConfig

    folder, model = exported

    def rates(classifier):
        layer = classifier.bert.encoder.layer[0]
        modules = (layer.output, layer.attention.output, layer.attention.self, classifier)
        return {module.dropout.p for module in modules}

    assert model.config.hidden_dropout_prob == 0.1
    assert rates(load_encoder(str(folder), SEQ_LENGTH).classifier(TASKS["RTE"], seed=3)) == {0.1}
    for given in (0.0, 0.25):
        assert rates(load_encoder(str(folder), SEQ_LENGTH, dropout=given).classifier(TASKS["RTE"], seed=3)) == {given}
    DistilBertConfig(max_position_embeddings=64).save_pretrained(folder)  # has `dropout` and `attention_dropout`
    with pytest.raises(ValueError, match="--dropout 0.1: the model's configuration must have hidden_dropout_prob"):
        load_encoder(str(folder), SEQ_LENGTH, dropout=0.1)


def test_modernbert_is_fine_tuned_with_its_own_dropouts(tmp_path):
    theirs = save_stock(tmp_path, "modernbert")
    encoder = load_encoder(str(tmp_path), SEQ_LENGTH, dropout=0.25)
    model = encoder.classifier(TASKS["RTE"], seed=3).train()
    layer = model.model.layers[1]
    assert {layer.mlp.drop.p, layer.attn.out_drop.p, model.model.embeddings.drop.p, model.drop.p} == {0.25}
    assert torch.equal(model.model.layers[2].mlp.Wi.weight, theirs.model.layers[2].mlp.Wi.weight)
    ids = torch.randint(5, 60, (2, SEQ_LENGTH))
    assert model(ids, attention_mask=torch.ones_like(ids)).logits.shape == (2, 2)


def test_from_scratch_has_the_same_shape_and_other_weights(exported):
    tmp_path, model = exported
    pretrained = load_encoder(str(tmp_path), SEQ_LENGTH).classifier(TASKS["MNLI"], seed=3)
    fresh = load_encoder(str(tmp_path), SEQ_LENGTH, from_scratch=True).classifier(TASKS["MNLI"], seed=3)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(pretrained.state_dict()[name], model.state_dict()[name])
    assert not torch.equal(fresh.state_dict()[name], model.state_dict()[name])
    assert pretrained.classifier.out_features == fresh.classifier.out_features == 3
    with pytest.raises(ValueError, match="neither a bert_pld checkpoint nor a transformers model"):
        load_encoder(str(tmp_path / "nothing"), SEQ_LENGTH)
