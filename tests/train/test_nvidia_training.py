"""Directories of NVIDIA's shards train as they are: both kinds of masks, resumed bit for bit, evaluated, exported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from runs import VOCABULARY, clean_environment, read_metrics, run_pretrain, small_config
from static_shards import write_static_corpus

from bert_pld.train.checkpoint import list_checkpoints

KEYS = ("step", "samples", "tokens", "loss", "mlm_loss", "eval_mlm_loss")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for the module's runs, so that the user's own stays untouched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERT_PLD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def nvidia(cache, tmp_path_factory):
    """Pairs, a vocabulary beside them."""
    directory = tmp_path_factory.mktemp("nvidia")
    write_static_corpus(directory)
    return directory


@pytest.fixture(scope="module")
def academic(cache, tmp_path_factory):
    """No pairs, no vocabulary, no test files."""
    directory = tmp_path_factory.mktemp("academic")
    write_static_corpus(directory, names="academic", pairs=False, vocabulary=False, test=())
    return directory


def config(masking, **training):
    return small_config(data={"masking": masking}, training={"checkpoint_interval": 3, **training})


def series(run_dir):
    return {key: read_metrics(run_dir, key) for key in KEYS}


@pytest.mark.parametrize("masking", ["static", "dynamic"])
def test_interrupted_run_repeats_the_whole_one_with_any_number_of_workers(nvidia, tmp_path, masking):
    run_pretrain(config(masking), nvidia, tmp_path / "run")
    whole = series(tmp_path / "run")
    assert whole["loss"][-1] < whole["loss"][0]
    assert len(whole["eval_mlm_loss"]) == 2
    assert read_metrics(tmp_path / "run", "nsp_loss")
    for checkpoint in list_checkpoints(tmp_path / "run" / "checkpoints")[:2]:
        shutil.rmtree(checkpoint)
    again = config(masking)
    again["data"]["workers"] = 2
    run_pretrain(again, nvidia, tmp_path / "run")
    assert series(tmp_path / "run") == whole


def test_masks_of_the_files_and_ours_give_other_losses_on_the_same_rows(nvidia, tmp_path):
    losses = {}
    for masking in ("static", "dynamic"):
        run_pretrain(config(masking, max_steps=2), nvidia, tmp_path / masking)
        losses[masking] = read_metrics(tmp_path / masking)
        assert read_metrics(tmp_path / masking, "samples") == [8, 16]
    assert losses["static"] != losses["dynamic"]


@pytest.mark.launcher
def test_two_ranks_with_uneven_shards_finish(nvidia, tmp_path):
    run_pretrain(config("static", max_steps=14), nvidia, tmp_path / "run", ranks=2)  # 112 rows: into the second epoch
    assert read_metrics(tmp_path / "run", "step")[-1] == 14


def test_evaluation_and_export_use_the_vocabulary_beside_the_shards(nvidia, tmp_path):
    run_pretrain(config("static", max_steps=4), nvidia, tmp_path / "run")
    assert (tmp_path / "run" / "vocab.txt").read_text().split() == VOCABULARY
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bert_pld.evaluate", "--checkpoint", str(tmp_path / "run"), "--json", str(figures)]
    subprocess.run([*command, "--data_dir", str(nvidia)], check=True, env=clean_environment(), capture_output=True)
    expected = read_metrics(tmp_path / "run", "eval_mlm_loss")[-1]
    assert json.loads(figures.read_text())["eval_mlm_loss"] == pytest.approx(expected, rel=1e-5)
    command = [sys.executable, "-m", "bert_pld.export", "--checkpoint", str(tmp_path / "run")]
    subprocess.run([*command, "--output_dir", str(tmp_path / "out")], check=True, env=clean_environment())
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert list(tokenizer["model"]["vocab"]) == VOCABULARY
    assert tokenizer["normalizer"]["lowercase"] is True


def test_without_labels_the_objective_is_mlm_and_without_test_files_evaluation_is_off(academic, tmp_path):
    run_pretrain(config("dynamic", max_steps=3), academic, tmp_path / "off", expect=1)
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("".join(f"{entry}\n" for entry in VOCABULARY))
    arguments = ["--set", f"data.vocab_file={vocabulary}"]
    run_pretrain(config("static", max_steps=6, eval_interval=3), academic, tmp_path / "run", *arguments)
    assert len(read_metrics(tmp_path / "run")) == 6
    assert not read_metrics(tmp_path / "run", "eval_mlm_loss")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["next_sentence_prediction"] is False
    command = [sys.executable, "-m", "bert_pld.evaluate", "--checkpoint", str(tmp_path / "run"), "--data_dir"]
    done = subprocess.run([*command, str(academic)], env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "split 'validation' has no rows" in done.stderr
    done = subprocess.run(
        [*command, str(academic), "--split", "train"], env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "eval_mlm_loss" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "data.seq_length=16"], "sequences of 32 tokens; the run is configured for 16 (data.seq_length)"),
        (["--set", "data.vocab_file=/nowhere"], "/nowhere: not a readable vocabulary"),
    ],
)
def test_mistake_is_one_line(nvidia, tmp_path, arguments, message):
    done = run_pretrain(config("static"), nvidia, tmp_path / "run", *arguments, expect=1)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr


def test_other_data_than_the_checkpoint_s_is_refused(nvidia, tmp_path):
    other = tmp_path / "other"
    write_static_corpus(other, train=(50, 46))
    run_pretrain(config("static", max_steps=3), nvidia, tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.copytree(nvidia, moved)
    run_pretrain(config("static", max_steps=4), moved, tmp_path / "run")
    done = run_pretrain(config("static", max_steps=5), other, tmp_path / "run", expect=1)
    assert "was trained on other data than --data_dir holds" in done.stderr
