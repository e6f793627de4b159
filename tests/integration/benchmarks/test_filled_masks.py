"""scripts/measure/measure_filled_masks.py: a model's guesses at masked tokens beside the frequencies of tokens."""

import json
import math

import pytest
from hugging_face_models import ENTRIES, save_stock


def test_frequencies_are_those_of_the_text_and_guesses_are_counted(run_script, tmp_path):
    save_stock(tmp_path / "model")
    for folder, text in (("text", "w1 w1 w1 w2\n\nw1 w2"), ("held_out", "w1 " * 200 + "\n\n" + "w2 " * 100)):
        (tmp_path / folder).mkdir()
        for language in ("de", "xx"):
            (tmp_path / folder / f"{language}.txt").write_text(text)
    report = tmp_path / "report.json"
    folders = ("--text", tmp_path / "text", "--held_out", tmp_path / "held_out")
    arguments = (tmp_path / "model", *folders, "--seq_length", 32, "--json", report)
    code, printed, errors = run_script("measure_filled_masks", *arguments)
    assert code == 0, errors
    german, other = json.loads(report.read_text())["languages"]
    assert (german["language"], german["tokens"]) == ("de", 6)
    assert 25 < german["masked"] < 65
    share = german["most_frequent_accuracy"]
    assert 0.4 < share < 0.85
    # Of 6 + 64 counts w1 has 5, and w2 has 3.
    losses = -math.log(5 / (6 + ENTRIES)), -math.log(3 / (6 + ENTRIES))
    assert german["frequencies_loss"] == pytest.approx(share * losses[0] + (1 - share) * losses[1])
    assert 0 <= german["accuracy"] < 1
    assert len(german["guesses"]) == 3
    assert "guesses" not in other
    assert printed.count("most frequent token") == 2


def test_a_language_without_text_is_one_line(run_script, tmp_path):
    (tmp_path / "xx.txt").write_text("w1")
    (tmp_path / "none").mkdir()
    arguments = (tmp_path, "--text", tmp_path / "none", "--held_out", tmp_path)
    code, _, errors = run_script("measure_filled_masks", *arguments)
    assert code == 1
    assert errors == f"error: --held_out {tmp_path}: xx.txt is not in {tmp_path / 'none'}\n"
