"""Ten languages through the sources: what is kept, what becomes [UNK], which duplicates are found."""

import json
import random

import pytest
from made_up_corpus import card_of
from made_up_dump import dump, page
from scripts.measure.measure_scripts import SCRIPTS, paragraph, with_changed_characters
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from bert_pld.data.tokenizer import changed_without_accents
from data_prep.__main__ import main

COPIES = 8


@pytest.mark.parametrize("language", SCRIPTS)
def test_text_of_any_script_is_kept_known_and_compared(language, tmp_path, capsys):
    draw = random.Random(3)
    pages = []
    for number in range(12):
        text = "\n\n".join([*(paragraph(language, draw) for _ in range(4)), "== 1 ==", paragraph(language, draw)])
        pages.append(page(f"T{number}", text, number))
    (tmp_path / "dump.xml").write_bytes(dump(pages))
    (tmp_path / "books").mkdir()
    for number in range(2):
        book = "\n".join(paragraph(language, draw, sentences=draw.randint(1, 3)) for _ in range(40))
        (tmp_path / "books" / f"{number}.txt").write_text(book, encoding="utf-8")
    texts = ["\n".join(paragraph(language, draw) for _ in range(4)) for _ in range(30)]
    texts += [with_changed_characters(language, text, draw, 0.01) for text in texts[:COPIES]]
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    sources = [f"wikipedia-dump={tmp_path}/dump.xml", f"books={tmp_path}/books", f"jsonl={tmp_path}/rows.jsonl"]
    arguments = [part for source in sources for part in ("--source", source)]
    output_dir = tmp_path / "out"
    size, workers = ["--vocab_size", "300"], ["--workers", "1", "--validation_fraction", "0.1"]
    assert main(["build", *arguments, "--output_dir", str(output_dir), *size, *workers]) == 0
    assert "warning" not in capsys.readouterr().out

    card = card_of(output_dir)
    articles, books, rows = (source["characters"] for source in card["sources"])
    assert articles["left_out"] == {"heading": {"parts": 12, "characters": 12}}
    assert books["kept"] == books["read"] > 1000
    assert rows["kept"] == rows["read"] > 1000
    assert card["unknown_token_rate"] < 0.001
    assert COPIES - 1 <= card["documents"]["duplicates"]["near"] <= COPIES
    total = card["characters"]
    assert total["read"] - total["kept"] == 12 + total["left_out"]["duplicate"]["characters"]

    tokenizer = Tokenizer.from_file(str(output_dir / "tokenizer.json"))
    hugging_face = PreTrainedTokenizerFast.from_pretrained(output_dir)
    text = texts[0].replace("\u200b", " ")
    assert hugging_face(texts[0])["input_ids"] == tokenizer.encode(texts[0]).ids
    normal = tokenizer.normalizer.normalize_str(text)
    kept, given = (len(changed_without_accents().findall(form)) for form in (normal, text))
    assert kept == given


def test_build_that_keeps_less_than_half_says_so_at_the_end(tmp_path, capsys):
    draw = random.Random(4)
    parts = "\n\n".join(f"== {number} ==\n* {paragraph('zh', draw)[:-1]}" for number in range(6))
    pages = [page(f"T{number}", f"{paragraph('zh', draw)}\n\n{parts}", number) for number in range(4)]
    (tmp_path / "dump.xml").write_bytes(dump(pages))
    output_dir = tmp_path / "out"
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n一\n", encoding="utf-8")
    source = ["--source", f"wikipedia-dump={tmp_path}/dump.xml", "--deduplicate", "none", "--workers", "1"]
    assert main(["build", *source, "--vocab", f"{tmp_path}/vocab.txt", "--output_dir", str(output_dir)]) == 0
    *_, kept, unknown = capsys.readouterr().out.strip().splitlines()
    assert kept.startswith("warning: only ")
    assert "of the characters that were read are kept; left out: " in kept
    assert "list entry or table row that is no sentence; 24 heading" in kept
    assert unknown.startswith("warning: 9")
    assert "of the tokens are [UNK]" in unknown
    page_of_card = (output_dir / "data_card.html").read_text(encoding="utf-8")
    assert page_of_card.count("Warning: ") == 2
    assert main(["verify", str(output_dir)]) == 0
    assert "of the tokens are [UNK]" in capsys.readouterr().out


def test_stripped_accents_that_change_the_text_are_said_at_the_end(tmp_path, capsys):
    draw = random.Random(5)
    rows = (json.dumps({"text": "\n".join(paragraph("hi", draw) for _ in range(4))}) + "\n" for _ in range(12))
    (tmp_path / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    source = ["--source", f"jsonl={tmp_path}/rows.jsonl", "--vocab_size", "256", "--workers", "1"]
    warnings = {}
    for accents in ("strip", "keep"):
        assert main(["build", *source, "--accents", accents, "--output_dir", str(tmp_path / accents)]) == 0
        warnings[accents] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
        assert card_of(tmp_path / accents)["vocabulary"]["accents"] == ("kept" if accents == "keep" else "stripped")
    assert warnings["keep"] == []
    (warning,) = warnings["strip"]
    assert warning.startswith("warning: stripping accents changed ")
    assert main(["build", *source, "--cased", "--accents", "strip", "--output_dir", str(tmp_path / "cased")]) == 1
    assert "--accents strip: a cased vocabulary keeps accents" in capsys.readouterr().err
    assert main(["build", *source, "--cased", "--output_dir", str(tmp_path / "cased")]) == 0
