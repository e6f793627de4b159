"""Training on NVIDIA's shards without conversion: both kinds of masks, bitwise resuming, evaluation."""

from __future__ import annotations

import json
import shutil

import pytest
from runs import VOCABULARY, read_metrics, run_evaluate, run_pretrain, small_config
from static_shards import write_static_corpus

from bert_pld.checkpoint.format import list_checkpoints

KEYS = ("step", "samples", "tokens", "loss", "mlm_loss", "eval_mlm_loss")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache for the runs of this module, separate from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERT_PLD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def nvidia(cache, tmp_path_factory):
    """Shards with sentence pairs and a vocabulary."""
    directory = tmp_path_factory.mktemp("nvidia")
    write_static_corpus(directory)
    return directory


@pytest.fixture(scope="module")
def academic(cache, tmp_path_factory):
    """Shards without pairs, vocabulary or test files."""
    directory = tmp_path_factory.mktemp("academic")
    write_static_corpus(directory, names="academic", pairs=False, vocabulary=False, test=())
    return directory


def config(masking, workers=0, **training):
    training = {"checkpoint_interval": 3, "max_steps": 9, **training}
    return small_config(data={"masking": masking, "workers": workers}, training=training)


def series(run_dir):
    return {key: read_metrics(run_dir, key) for key in KEYS}


@pytest.fixture(scope="module")
def whole(nvidia, tmp_path_factory):
    """A finished run for each kind of masks."""
    folders = {masking: tmp_path_factory.mktemp(masking) / "run" for masking in ("static", "dynamic")}
    for masking, folder in folders.items():
        run_pretrain(config(masking), nvidia, folder)
    return folders


@pytest.mark.parametrize("masking", ["static", "dynamic"])
def test_run_resumed_with_two_workers_repeats_losses_bitwise(nvidia, whole, tmp_path, masking):
    expected = series(whole[masking])
    assert expected["loss"][-1] < expected["loss"][0]
    assert len(expected["eval_mlm_loss"]) == 2
    shutil.copytree(whole[masking], tmp_path / "run")
    for checkpoint in list_checkpoints(tmp_path / "run" / "checkpoints")[:2]:
        shutil.rmtree(checkpoint)
    run_pretrain(config(masking, workers=2), nvidia, tmp_path / "run")
    assert series(tmp_path / "run") == expected


def test_static_and_dynamic_masks_train_on_the_same_rows_with_different_losses(whole):
    static, dynamic = (series(whole[masking]) for masking in ("static", "dynamic"))
    assert (static["samples"], static["tokens"]) == (dynamic["samples"], dynamic["tokens"])
    assert static["loss"] != dynamic["loss"]


@pytest.mark.launcher
def test_two_ranks_with_uneven_shards_train_into_the_second_epoch(nvidia, tmp_path):
    run_pretrain(config("static", max_steps=14, eval_interval=0), nvidia, tmp_path / "run", ranks=2)
    assert read_metrics(tmp_path / "run", "samples")[-1] == 112 > 96


def test_evaluation_repeats_the_metrics_of_training_and_checkpoints_have_the_tokenizer(nvidia, whole, tmp_path):
    run_dir, figures = whole["static"], tmp_path / "figures.json"
    run_evaluate(run_dir, nvidia, "--json", str(figures))
    expected = read_metrics(run_dir, "eval_mlm_loss")[-1]
    assert json.loads(figures.read_text())["eval_mlm_loss"] == pytest.approx(expected, rel=1e-5)
    for folder in (run_dir, list_checkpoints(run_dir / "checkpoints")[0]):
        assert (folder / "vocab.txt").read_text().split() == VOCABULARY
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        assert sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get) == VOCABULARY
        assert tokenizer["normalizer"]["lowercase"] is True


def test_shards_without_labels_train_mlm_and_without_test_files_are_not_evaluated(academic, tmp_path):
    vocabulary = tmp_path / "given.txt"
    vocabulary.write_text("".join(f"{entry}\n" for entry in VOCABULARY))
    arguments = ["--set", f"data.vocab_file={vocabulary}"]
    run_pretrain(config("dynamic", max_steps=4, eval_interval=2), academic, tmp_path / "run", *arguments)
    assert len(read_metrics(tmp_path / "run")) == 4
    assert not read_metrics(tmp_path / "run", "eval_mlm_loss")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["next_sentence_prediction"] is False
    vocabulary.unlink()  # the checkpoint contains a copy
    assert "eval_mlm_loss" in run_evaluate(tmp_path / "run", academic, "--split", "train").stdout
