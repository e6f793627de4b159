"""Retrieval through the command, on made-up documents in which a query's answer shares rare words with it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from finetune_runs import write_tokenizer
from runs import LAUNCHER_VARIABLES, VOCABULARY

pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.util import cos_sim
from sklearn.metrics import ndcg_score
from transformers import BertConfig, BertForMaskedLM

from bert_pld.finetune_retrieval import build_parser, main
from bert_pld.retrieval.data import read_retrieval
from bert_pld.retrieval.training import RetrievalSettings, evaluate_rankings, load_text_encoder, training_arguments


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    """120 documents, each of two topics of ten; a query names the topics in another order, among noise."""
    folder, rng = tmp_path_factory.mktemp("beir"), np.random.default_rng(0)
    (folder / "qrels").mkdir()
    topics = [(a, b) for a in range(12) for b in range(12) if a != b][:120]
    noise = lambda count: [f"w{word}" for word in rng.integers(30, 51, count)]  # noqa: E731
    with open(folder / "corpus.jsonl", "w") as file:
        for a, b in topics:
            text = " ".join([f"w{a}", *noise(3), f"w{12 + b}", *noise(3)])
            file.write(json.dumps({"_id": f"d{a}-{b}", "title": "", "text": text}) + "\n")
    splits = {"train": 1, "test": 1}
    with open(folder / "queries.jsonl", "w") as file:
        for split in splits:
            for a, b in topics:
                file.write(
                    json.dumps({"_id": f"{split}{a}-{b}", "text": " ".join([f"w{12 + b}", *noise(1), f"w{a}"])}) + "\n"
                )
    for split in splits:
        rows = "".join(f"{split}{a}-{b}\td{a}-{b}\t1\n" for a, b in topics)
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=len(VOCABULARY), **sizes)).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def run(beir, encoder, output_dir, *arguments):
    paths = ["--data_dir", str(beir), "--model", str(encoder), "--output_dir", str(output_dir)]
    main(build_parser().parse_args([*paths, "--max_seq_length", "16", *arguments]))
    return json.loads((output_dir / "summary.json").read_text())


def test_contrastive_training_finds_answers_and_ndcg_is_that_of_a_full_ranking(beir, encoder, tmp_path, capsys):
    before = run(beir, encoder, tmp_path / "before", "--epochs", "0")["splits"]["test"]["ndcg@10"]["mean"]
    trained = ["--epochs", "12", "--batch_size", "30", "--learning_rates", "3e-3"]
    after = run(beir, encoder, tmp_path / "after", *trained)["splits"]["test"]["ndcg@10"]["mean"]
    assert after > max(70.0, before + 20.0)

    model = load_text_encoder(str(tmp_path / "after" / "lr_0.003_seed_1" / "model"), 16, seed=0)
    data = read_retrieval(beir)
    documents, judgements = list(data.documents), data.evaluated("test")
    similarity = cos_sim(
        model.encode([data.queries[query] for query in judgements]), model.encode(list(data.documents.values()))
    )
    grades = np.array([[answers.get(one, 0) for one in documents] for answers in judgements.values()])
    assert 100 * ndcg_score(grades, similarity.numpy(), k=10) == pytest.approx(after, abs=1e-3)
    assert evaluate_rankings(model, data, "test", 16)["ndcg@10"] == pytest.approx(after, abs=1e-6)

    capsys.readouterr()
    run(beir, encoder, tmp_path / "after", *trained)
    assert "lr 0.003, seed 1" not in capsys.readouterr().out  # A finished fine-tuning is not repeated.
    with pytest.raises(ValueError, match="holds a result with epochs = 12, not 11; give another --output_dir"):
        run(beir, encoder, tmp_path / "after", *trained[:1], "11", *trained[2:])


def test_model_as_it_is_is_evaluated_once_whatever_seeds_are_given(beir, encoder, tmp_path, capsys):
    summary = run(beir, encoder, tmp_path / "out", "--epochs", "0", "--seeds", "3", "4")
    assert {figure["n"] for figure in summary["splits"]["test"].values()} == {1}
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == ["lr_0_seed_3"]
    assert "(2 seed(s))" not in capsys.readouterr().out


def test_batch_of_64_pairs_stays_64_pairs_on_a_machine_with_four_gpus(tmp_path, monkeypatch, caplog):
    """What torch says about GPUs is replaced; nothing runs on one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name in LAUNCHER_VARIABLES:  # Other tests' ranks are described by them.
        monkeypatch.delenv(name, raising=False)
    arguments = training_arguments(str(tmp_path), RetrievalSettings(), learning_rate=5e-5, seed=1)
    assert (arguments.device.type, arguments.n_gpu, arguments.train_batch_size) == ("cuda", 1, 64)
    assert "Currently using DataParallel" not in caplog.text


def test_more_tokens_than_the_model_has_positions_are_refused_before_training(beir, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(SentenceTransformerTrainer, "train", lambda trainer: pytest.fail("the training began"))
    with pytest.raises(ValueError, match="^--max_seq_length 513: must be at most 512, the model's positions$"):
        run(beir, encoder, tmp_path / "out", "--max_seq_length", "513")


def test_split_without_a_query_to_evaluate_is_refused_before_training(beir, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(SentenceTransformerTrainer, "train", lambda trainer: pytest.fail("the training began"))
    shutil.copytree(beir, tmp_path / "beir")
    (tmp_path / "beir" / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\ngone\td0-1\t1\n")
    with pytest.raises(ValueError, match="qrels/dev.tsv has no query with an answer whose text is in queries.jsonl"):
        run(tmp_path / "beir", encoder, tmp_path / "out")


def test_trained_model_is_saved_even_if_its_evaluation_fails(beir, encoder, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("bert_pld.retrieval.training.evaluate_rankings", fail)
    with pytest.raises(MemoryError):
        run(beir, encoder, tmp_path / "out", "--learning_rates", "3e-3")
    saved = load_text_encoder(str(tmp_path / "out" / "lr_0.003_seed_1" / "model"), 16, seed=0)
    before = load_text_encoder(str(encoder), 16, seed=0)
    pairs = zip(saved.state_dict().values(), before.state_dict().values(), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) > 1e-3


def test_rate_at_which_the_weights_diverge_has_no_figures(beir, encoder, tmp_path, monkeypatch, capsys):
    """With weights that are not finite, the order of the documents would be arbitrary and still get figures."""
    train = SentenceTransformerTrainer.train

    def diverging(trainer):
        if trainer.args.learning_rate == 0.5:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(torch.nan)
        else:
            train(trainer)

    monkeypatch.setattr(SentenceTransformerTrainer, "train", diverging)
    rates = ["--learning_rates", "0.5", "1e-3"]
    summary = run(beir, encoder, tmp_path / "out", *rates)
    assert summary["learning_rate"] == 1e-3
    result = json.loads((tmp_path / "out" / "lr_0.5_seed_1" / "result.json").read_text())
    assert (result["dev"], result["diverged_at_step"]) == ({}, result["steps"])
    assert "lr 0.5, seed 1: diverged; its weights are not finite, so it has no figures" in capsys.readouterr().out
    run(beir, encoder, tmp_path / "out", *rates)
    assert "seed 1:" not in capsys.readouterr().out  # It is a finished result, like the other.
    with pytest.raises(ValueError, match="^a fine-tuning diverged at every learning rate; give lower"):
        run(beir, encoder, tmp_path / "out", *rates[:2])


def test_mistakes_are_one_line(beir, encoder, tmp_path):
    with pytest.raises(ValueError, match="--batch_size 1: must be >= 2"):
        run(beir, encoder, tmp_path / "out", "--batch_size", "1")
    with pytest.raises(ValueError, match="no checkpoint found"):
        run(beir, tmp_path, tmp_path / "out")
