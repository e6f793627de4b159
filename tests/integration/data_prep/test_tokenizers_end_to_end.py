"""Ten languages through a build with each algorithm: rows, card and `verify`; the same bytes for any workers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_up_corpus import card_of, digests
from made_up_tokenizers import KINDS, save
from ten_languages import SENTENCES, made_documents
from transformers import AutoTokenizer

from bert_pld.data.rows import ShardedRows
from data_prep.__main__ import main

SIZES = {"wordpiece": 1800, "bpe": 1400, "unigram": 1400}


@pytest.fixture(scope="module")
def texts():
    return [text for language in SENTENCES for text in made_documents(language, 12)]


@pytest.fixture
def build(texts, tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")

    def run(name, *flags):
        flags = ("--deduplicate", "none", "--validation_fraction", "0.1", "--seq_length", "64", *flags)
        return main(["build", "--source", f"jsonl={source}", "--output_dir", str(tmp_path / name), *flags])

    return run


def documents_of(folder, sep, special):
    """The ids of each document of packed rows."""
    ids = []
    for split in ("train", "validation"):
        rows = ShardedRows(folder, split)
        columns = rows.read(np.arange(len(rows)))
        body = [row[1 : length - 1] for row, length in zip(columns["input_ids"], columns["length"], strict=True)]
        stream = np.concatenate(body)
        # Writing tasks are one after another in the rows; each ends with a row that may not be full.
        ids += [part.tolist() for part in np.split(stream, np.flatnonzero(stream == sep))]
    return [[token for token in document if token not in special] for document in ids]


@pytest.mark.parametrize("algorithm", SIZES)
def test_ten_languages_with_each_algorithm(algorithm, texts, build, tmp_path, capsys):
    trained = ("--vocab_size", str(SIZES[algorithm]), "--algorithm", algorithm)
    assert build("packed", *trained, "--objective", "mlm", "--workers", "1") == 0
    assert "warning" not in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "packed")]) == 0
    assert ": sound" in capsys.readouterr().out
    card = card_of(tmp_path / "packed")
    assert card["unknown_token_rate"] < 0.001
    assert card["vocabulary"]["size"] == SIZES[algorithm]
    assert card["sentences"] > 5 * len(texts) * 0.8
    assert card["characters"]["kept"] == card["characters"]["read"]

    auto = AutoTokenizer.from_pretrained(tmp_path / "packed")
    manifest = json.loads((tmp_path / "packed" / "manifest.json").read_text())
    special = manifest["special_tokens"]
    found = documents_of(tmp_path / "packed", special["sep"], [special["sep"]])
    assert sorted(found) == sorted(auto(text, add_special_tokens=False)["input_ids"] for text in texts)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_shards_and_tokenizer_are_the_same_for_any_number_of_workers(algorithm, build, tmp_path):
    trained = ("--vocab_size", str(SIZES[algorithm]), "--algorithm", algorithm)
    for workers in ("1", "3"):
        assert build(workers, *trained, "--workers", workers) == 0
    assert digests(tmp_path / "1") == digests(tmp_path / "3")
    assert len(digests(tmp_path / "1")) == 8


def test_a_given_tokenizer_is_the_one_beside_the_shards(build, tmp_path, capsys):
    make, tokens = KINDS["xlm_roberta"]
    folder = save(make(), tmp_path / "xlm", tokens)
    assert build("data", "--tokenizer", str(folder), "--workers", "1") == 0
    assert main(["verify", str(tmp_path / "data")]) == 0
    text = "Der Markt am Morgen. 朝の市場は野菜を買う人でいっぱいだった。"
    given, saved = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tmp_path / "data")
    assert saved(text, text)["input_ids"] == given(text, text)["input_ids"]
    capsys.readouterr()
    tokenizer = tmp_path / "data" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8").replace("NFKC", "NFC"), encoding="utf-8")
    assert main(["verify", str(tmp_path / "data")]) == 1
    assert "not the tokenizer of the shards: SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--tokenizer", "FOLDER", "--algorithm", "bpe"),
            "a tokenizer that --vocab_size trains; leave out",
        ),
        (("--tokenizer", "FOLDER", "--cased"), "--cased: not allowed with --tokenizer"),
        (("--tokenizer", "FOLDER", "--accents", "keep"), "--accents keep: not allowed with --tokenizer"),
        (("--tokenizer", "FOLDER", "--format", "nvidia"), "--format nvidia: requires a WordPiece vocab.txt"),
        (("--vocab_size", "1000", "--add_mask_token"), "--add_mask_token: requires --tokenizer"),
        (("--vocab_size", "1000", "--algorithm", "bpe", "--accents", "strip"), "not allowed with --algorithm bpe"),
        (("--vocab_size", "259", "--algorithm", "bpe"), "bytes and special tokens take 260 entries"),
        (("--vocab_size", "256", "--algorithm", "unigram"), "of this text's characters take"),
        (("--vocab_size", "90000", "--algorithm", "unigram"), "the text gives only"),
        (("--tokenizer", "missing"), "no such file or directory"),
    ],
)
def test_flags_that_cannot_be_are_an_error_of_one_line(flags, message, build, tmp_path, capsys):
    make, tokens = KINDS["roberta"]
    folder = save(make(), tmp_path / "given", tokens)
    assert build("data", *(str(folder) if flag == "FOLDER" else flag for flag in flags), "--workers", "1") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
