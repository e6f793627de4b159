"""measure_deduplication.py finds and counts planted duplicates; a sample that is too small is an error."""

import functools
import json
import random

import pytest
from made_up_corpus import WORDS


@pytest.fixture
def run(run_script):
    return functools.partial(run_script, "measure_deduplication")


@pytest.fixture
def source(tmp_path):
    """Make a source of a number of documents of 40 words each."""

    def make(documents):
        draw, path = random.Random(documents), tmp_path / f"{documents}.jsonl"
        texts = [" ".join(draw.choices(WORDS, k=40)) for _ in range(documents)]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return f"jsonl={path}"

    return make


def test_a_tenth_of_the_documents_is_planted_and_copies_are_found(run, source, tmp_path):
    figures = tmp_path / "figures.json"
    code, printed, errors = run("--source", source(20), "--rates", 0.01, "--fewest_words", 0, "--json", figures)
    assert (code, errors) == (0, "")
    assert printed.startswith("20 documents, of which 0 are exact and 0 are near duplicates")
    (planted,) = json.loads(figures.read_text())["planted"]
    assert (planted["documents"], planted["planted"], planted["copies_found"]) == (20, 2, 1.0)


def test_too_few_documents_and_invalid_shares_are_errors_of_one_line(run, source):
    few, enough = source(9), source(20)
    for arguments, message in (
        (["--source", few], f"--source {few}: 9 documents; must be at least 10, so that one is planted"),
        (["--source", enough, "--fewest_words", 0, 60], "--fewest_words 60: 0 documents; must be at least 10"),
        (["--source", enough, "--rates", 0], "--rates 0: must be above 0 and at most 1"),
        (["--source", enough, "--similarity", 1.5], "--similarity 1.5: must be above 0 and at most 1"),
        (["--source", "jsonl=nowhere"], "nowhere: no such file"),
    ):
        code, printed, errors = run(*arguments)
        assert (code, printed) == (1, "")
        assert errors.startswith(f"error: {message}")
        assert errors.count("\n") == 1
