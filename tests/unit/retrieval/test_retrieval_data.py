"""Folders in BEIR's format are read as they are, and figures are those of other implementations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from bert_pld.retrieval.data import read_retrieval
from bert_pld.retrieval.figures import ranking_figures


def write_folder(folder, qrels=None, documents=("d1", "d2"), queries=("q1", "q2")):
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": one, "title": f"title {one}", "text": f"text of {one}", "metadata": {}} for one in documents]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(one) + "\n" for one in corpus))
    texts = [{"_id": one, "text": f"question {one}"} for one in queries]
    (folder / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))
    for split, rows in (qrels or {"train": [("q1", "d1", 1)]}).items():
        lines = "".join("\t".join(map(str, row)) + "\n" for row in rows)
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    return folder


def test_pairs_and_judgements_are_those_of_the_files(tmp_path):
    qrels = {
        "train": [("q1", "d1", 1), ("q1", "d2", 0), ("q2", "d2", 2), ("q2", "gone", 1)],
        "test": [("q1", "d2", 2), ("q2", "d1", 0), ("gone", "d1", 1)],
    }
    data = read_retrieval(write_folder(tmp_path / "beir", qrels))
    assert data.training_pairs() == [
        ("question q1", "title d1 text of d1"),
        ("question q2", "title d2 text of d2"),
    ]
    assert data.evaluated("test") == {"q1": {"d2": 2}}
    assert data.describe() == (
        "2 documents, 2 queries, train 2 queries with an answer, test 1 queries with an answer, 2 training pairs,"
        " 1 pairs without a text left out"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", '{"_id": "d1", "text": "a"}\n{"_id": "d1", "text": "b"}\n', "line 2: _id 'd1' is given twice"),
        ("corpus.jsonl", '{"_id": 1, "text": "a"}\n', "line 1: must be an object with the strings _id and text"),
        ("queries.jsonl", '{"_id": "q1", "text": "a"}\nquestion\n', r"line 2: not a line of JSON \('question'\)"),
        ("queries.jsonl", "", "queries.jsonl: is empty"),
        ("corpus.jsonl", '{"_id": "d9", "text": "the \\ud800 cat"}\n', r"line 1: \\ud800 is half of a surrogate pair"),
        ("queries.jsonl", '{"_id": "\\udc00", "text": "a"}\n', r"line 1: \\udc00 is half of a surrogate pair"),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\nq1\td1\n", "line 2: 'q1.td1'; must be query-id, corpus-id"),
        ("qrels/train.tsv", "q1\td1\tyes\nq2\td1\tno\n", "line 2: 'q2.td1.tno'; must be query-id, corpus-id"),
        ("qrels/train.tsv", "q1\td1\t1.0\nq2\td1\t1\n", "line 1: 'q1.td1.t1.0'; must be query-id, corpus-id"),
        ("qrels/train.tsv", "q1\td1\t0\n", "no score is above 0"),
    ],
)
def test_file_in_another_format_is_one_line(tmp_path, name, content, message):
    folder = write_folder(tmp_path / "beir")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message.replace(".t", r"\\t")) as error:
        read_retrieval(folder)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_first_line_of_judgements_is_a_header_only_without_a_number(tmp_path):
    folder = write_folder(tmp_path / "beir")
    for first, queries in (("query-id\tcorpus-id\tscore", ["q2"]), ("q1\td1\t1", ["q1", "q2"])):
        (folder / "qrels" / "train.tsv").write_text(f"{first}\nq2\td2\t1\n")
        assert list(read_retrieval(folder).judgements["train"]) == queries


def test_pair_of_surrogates_is_a_character(tmp_path):
    folder = write_folder(tmp_path / "beir")
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "\\ud83d\\ude00"}\n')
    assert read_retrieval(folder).queries == {"q1": "\U0001f600"}


def test_missing_files_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_retrieval(tmp_path / "none")
    folder = write_folder(tmp_path / "beir")
    (folder / "qrels" / "train.tsv").unlink()
    with pytest.raises(ValueError, match=r"no qrels/train\.tsv, qrels/dev\.tsv or qrels/test\.tsv"):
        read_retrieval(folder)


def test_ndcg_is_that_of_scikit_learn_for_graded_answers():
    rng = np.random.default_rng(0)
    rankings, judgements, expected, recalls = {}, {}, [], []
    for query in range(50):
        grades, similarity = rng.integers(0, 4, 300) * (rng.random(300) < 0.06), rng.random(300)
        grades[rng.integers(300)] = 1
        order = np.argsort(-similarity)
        rankings[str(query)] = [str(document) for document in order[:100]]
        judged = {str(document): int(grade) for document, grade in enumerate(grades) if grade or document % 9 == 0}
        judgements[str(query)] = judged
        expected.append(ndcg_score(grades[None], similarity[None], k=10))
        recalls.append((grades[order[:100]] > 0).sum() / (grades > 0).sum())
    figures = ranking_figures(rankings, judgements)
    assert figures["ndcg@10"] == pytest.approx(100 * np.mean(expected), rel=1e-12)
    assert figures["recall@100"] == pytest.approx(100 * np.mean(recalls), rel=1e-12)
