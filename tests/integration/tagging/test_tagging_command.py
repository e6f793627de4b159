"""Tagging through the command, on made-up names that a tiny encoder can learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from finetune_runs import write_tokenizer
from runs import VOCABULARY, error_of, run_command, start_command
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

seqeval = pytest.importorskip("seqeval.metrics")

SETTINGS = ["--epochs", "4", "--batch_size", "16", "--max_seq_length", "12", "--learning_rates", "5e-3"]


def write_names(folder):
    """Write sentences in which w7 begins a name of kind A, and w8 and w9 one of kind B, of which w9 is the rest."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 160), ("dev", 40), ("test", 30)):
        sentences = []
        for _ in range(count):
            lines = []
            for word in rng.integers(10, 50, rng.integers(2, 12)):
                kind = rng.integers(6)
                lines += ["w7 B-A"] if kind == 0 else ["w8 B-B", "w9 I-B"] if kind == 1 else [f"w{word} O"]
            sentences.append("\n".join(lines) + "\n")
        (folder / f"{split}.txt").write_text("\n".join(sentences))
    return folder


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    return write_names(tmp_path_factory.mktemp("names") / "names")


def write_model(folder, modern=False):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    if modern:
        config = ModernBertConfig(
            **sizes,
            intermediate_size=32,
            pad_token_id=0,
            cls_token_id=2,
            sep_token_id=3,
            bos_token_id=2,
            eos_token_id=3,
        )
        ModernBertForMaskedLM(config).save_pretrained(folder)
    else:
        BertForMaskedLM(BertConfig(**sizes, intermediate_size=64)).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def tag(data_dir, model, output_dir, *arguments, expect=0):
    paths = ["--data_dir", str(data_dir), "--model", str(model), "--output_dir", str(output_dir)]
    return run_command([*start_command("bert_pld.finetune_tokens", 1), *paths, *SETTINGS, *arguments], expect=expect)


@pytest.mark.parametrize("modern", [False, True], ids=["bert", "modernbert"])
def test_names_are_learnt_and_the_figures_of_both_splits_are_seqeval_s(names, tmp_path, modern):
    """Sentences are longer than the rows; ModernBERT has no token types."""
    seeds = ["--seeds", "1"] if modern else ["--seeds", "1", "2"]
    done = tag(names, write_model(tmp_path / "model", modern), tmp_path / "out", *seeds)
    folder = tmp_path / "out" / "names" / "lr_0.005_seed_1"
    result = json.loads((folder / "result.json").read_text())
    assert result["dev"]["dev"]["f1"] > 90
    gold, predicted = ([], [])
    for sentence in (folder / "test.txt").read_text().split("\n\n"):
        rows = [line.split("\t") for line in sentence.strip().split("\n")]
        gold.append([row[1] for row in rows])
        predicted.append([row[2] for row in rows])
    written = [line.split() for line in (names / "test.txt").read_text().splitlines() if line]
    assert [tag for tags in gold for tag in tags] == [tag for _, tag in written]
    assert result["test"]["test.txt"]["f1"] == pytest.approx(100 * seqeval.f1_score(gold, predicted))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["splits"]["dev"]["f1"]["n"] == len(seeds) - 1
    assert f"names test.txt: f1 {summary['splits']['test.txt']['f1']['mean']:.2f} ± " in done.stdout
    if not modern:
        again = tag(names, tmp_path / "model", tmp_path / "out", *seeds)
        assert "2 fine-tunings, 2 of them done" in again.stdout


def test_mistakes_are_one_line(names, tmp_path):
    model = write_model(tmp_path / "model")
    assert "no such folder" in error_of(tag(tmp_path / "none", model, tmp_path / "out", expect=1))
    broken = write_names(tmp_path / "broken")
    (broken / "dev.txt").write_text("w7 B-A\nw8\n")
    assert "dev.txt, line 2: 1 column(s)" in error_of(tag(broken, model, tmp_path / "out", expect=1))
