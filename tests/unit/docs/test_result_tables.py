"""Tables of scripts/docs/result_tables.py from made-up results, in each format that their commands wrote."""

import importlib

import pytest
from repository import REPOSITORY


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "scripts" / "docs")
    return importlib.import_module("result_tables")


def rows_of(text):
    return [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]


def test_training_steps_are_read_in_both_formats(tables):
    old = [
        {"name": "reference", "speed_over_hugging_face_same_dtype": 1.25},
        {
            "name": "pld_batch",
            "speed_over_hugging_face_same_dtype": 2.5,
            "time_over_reference": 0.5,
            "predicted_of_gates_drawn": 0.55,
        },
    ]
    # Against the faster of Hugging Face's classes, megatron; the other dtype and the compiled class do not count.
    peers = {"hf_bert": 1.5, "hf_megatron": 1.25, "hf_megatron_compiled": 0.75}
    other = {"hf_megatron": 9.0, "reference": 9.0}
    new = [
        {"name": "reference", "speed_over": {"fp32": {**peers, "reference": 1.0}, "bf16": other}},
        {
            "name": "pld_batch",
            "speed_over": {"fp32": {name: 2 * speed for name, speed in peers.items()} | {"reference": 2.0}},
            "predicted_of_gates_drawn": 0.55,
        },
    ]
    for contenders in (old, new):
        filled = [{**one, "dtype": "fp32", "tokens_per_s": 1000.4} for one in contenders]
        assert rows_of(tables.training_steps({"contenders": filled})) == [
            ["reference", "fp32", "1,000", "1.25", "–", "–"],
            ["pld_batch", "fp32", "1,000", "2.50", "0.500", "0.550"],
        ]
    alone = {"name": "pld_batch", "dtype": "fp32", "tokens_per_s": 7.0, "speed_over": {"fp32": {"pld_batch": 1.0}}}
    assert rows_of(tables.training_steps({"contenders": [{**alone, "predicted_of_gates_drawn": 0.5}]})) == [
        ["pld_batch", "fp32", "7", "–", "–", "0.500"]
    ]


def test_comparison_with_the_trainer_shows_one_seed_without_a_deviation(tables):
    result = {"task": "CoLA", "seeds": [1, 2], "difference": -1.0, "standard_error": 0.52}
    result["scores"] = {"bert_pld": [80.0, 81.0], "trainer": [81.0, 82.0]}
    ours, theirs, difference = rows_of(tables.trainer(result))
    assert (ours[-1], theirs[-1], difference[-1]) == ("80.5 ± 0.7", "81.5 ± 0.7", "-1.0 ± 0.5")
    result |= {"seeds": [1], "standard_error": None, "scores": {"bert_pld": [80.0], "trainer": [81.0]}}
    ours, theirs, difference = rows_of(tables.trainer(result))
    assert (ours[1:], theirs[1:], difference[-1]) == (["80.0", "80.0"], ["81.0", "81.0"], "-1.0 one seed")
