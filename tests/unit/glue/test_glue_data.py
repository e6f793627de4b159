"""The irregularities of the official download, in synthetic files; batches; metrics; prediction files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bert_pld.finetuning.batches import Encoded, collate, evaluation_rows, training_order
from bert_pld.finetuning.loop import linear_schedule
from bert_pld.glue.data import read_split
from bert_pld.glue.tasks import DIAGNOSTIC, TASKS, find_tasks, mean_score, score


def write(folder, task, name, text):
    (folder / task).mkdir(exist_ok=True)
    (folder / task / name).write_bytes(text.encode())


def read(folder, task, split, text=None):
    """Return the examples of a split, whose file is written first if its text is given."""
    if text is not None:
        write(folder, task, f"{split}.tsv", text)
    found = TASKS[task]
    one = next(s for s in (found.train, *found.dev, *found.test) if s.name == split)
    return read_split(found, one, str(folder))


def test_cola_has_no_header_and_quotes_are_text(tmp_path):
    examples = read(tmp_path, "CoLA", "train", 'gj04\t1\t\tHe said "no.\ngj04\t0\t*\tThem "go" went.\n')
    assert examples.first == ['He said "no.', 'Them "go" went.']
    assert examples.labels == [1.0, 0.0]
    assert examples.second is None


def test_cola_test_file_has_a_header_and_no_label(tmp_path):
    examples = read(tmp_path, "CoLA", "test", "index\tsentence\n0\tBill came.\n1\t\n")
    assert examples.first == ["Bill came.", ""]  # the leaderboard expects a prediction for every row
    assert examples.labels is None


def test_byte_order_mark_and_crlf_are_stripped(tmp_path):
    examples = read(tmp_path, "SST-2", "dev", "\ufeffsentence\tlabel\r\nfine film \t1\r\nno\t0\r\n")
    assert examples.first == ["fine film ", "no"]
    assert examples.labels == [1.0, 0.0]


def test_columns_are_found_by_name_and_labels_may_be_words(tmp_path):
    header = "index\tsentence1\tsentence2\tlabel\n"
    examples = read(tmp_path, "RTE", "dev", f"{header}0\ta\tb\tnot_entailment\n1\tc\td\tentailment\n")
    assert (examples.first, examples.second, examples.labels) == (["a", "c"], ["b", "d"], [1.0, 0.0])


def test_rows_without_a_field_or_a_label_are_counted_and_left_out(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    rows = "1\t2\t3\tA?\tB?\t1\n2\t3\t4\tonly one\n3\t4\t5\tC?\t\t0\n4\t5\t6\tE?\tF?\t0\n"
    examples = read(tmp_path, "QQP", "train", header + rows)
    assert examples.first == ["A?", "E?"]
    assert examples.left_out == 2
    header = "index\tsentence1\tsentence2\tlabel1\tgold_label\n"
    examples = read(tmp_path, "MNLI", "dev_matched", f"{header}0\ta\tb\tneutral\t-\n1\tc\td\tneutral\tcontradiction\n")
    assert (examples.labels, examples.left_out) == ([2.0], 1)


def test_sts_b_labels_are_scores(tmp_path):
    examples = read(tmp_path, "STS-B", "dev", "index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.750\n1\tc\td\tnan\n")
    assert (examples.labels, examples.left_out) == ([3.75], 1)


def test_missing_test_file_is_none_and_missing_train_file_an_error(tmp_path):
    assert read(tmp_path, "WNLI", "test") is None
    with pytest.raises(ValueError, match=r"WNLI: train.tsv not found, required for WNLI"):
        read(tmp_path, "WNLI", "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"index\tsentence1\tsentence2\n0\ta\tb\n", "no column 'label'"),
        (b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n", "no usable row"),
        (b"\xff\xfe", "not UTF-8"),
        (b"", "no column"),
    ],
)
def test_file_that_is_not_a_table_of_the_task_is_reported(tmp_path, content, message):
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "train.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=f"RTE/train.tsv: {message}"):
        read(tmp_path, "RTE", "train")


def test_hub_dataset_is_read_with_its_own_columns(tmp_path):
    """A folder laid out like the Hub's dataset: one configuration per task, other column names."""
    rows = [("q", "s", 1, 0), ("r", "t", 0, 1)]
    lines = [json.dumps(dict(zip(("question", "sentence", "label", "idx"), row, strict=True))) + "\n" for row in rows]
    for split in ("train", "validation"):
        write(tmp_path, "qnli", f"{split}.jsonl", "".join(lines))
    card = "---\nconfigs:\n- config_name: qnli\n  data_files:\n  - split: train\n    path: qnli/train.jsonl\n"
    card += "  - split: validation\n    path: qnli/validation.jsonl\n---\n"
    (tmp_path / "README.md").write_text(card)
    task = TASKS["QNLI"]
    examples = read_split(task, task.dev[0], f"hub={tmp_path}")
    assert (examples.first, examples.second, examples.labels) == (["q", "r"], ["s", "t"], [1.0, 0.0])
    with pytest.raises(ValueError, match="rte, train: cannot be loaded"):
        read_split(TASKS["RTE"], TASKS["RTE"].train, f"hub={tmp_path}")


def test_learning_rate_rises_and_falls_linearly():
    shares = [linear_schedule(step, 100, 0.1) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == 1.0
    assert shares[55] == pytest.approx(0.5)
    assert shares[100] == 0.0


def test_epoch_has_every_row_once_and_fills_the_last_batch():
    lengths = np.random.default_rng(0).integers(5, 60, 1003)
    first = training_order(lengths, 16, seed=1, epoch=0)
    assert {len(batch) for batch in first} == {16}
    assert len(first) == 63
    rows, counts = np.unique(np.concatenate(first), return_counts=True)
    assert len(rows) == 1003
    assert counts.sum() == 63 * 16
    assert counts.max() == 2
    for other in (training_order(lengths, 16, seed=1, epoch=1), training_order(lengths, 16, seed=2, epoch=0)):
        assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    again = training_order(lengths, 16, seed=1, epoch=0)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    spread = np.mean([np.ptp(lengths[batch]) for batch in first])
    assert spread < 0.2 * np.ptp(lengths)


def test_evaluation_rows_are_divided_among_ranks_in_equally_many_batches():
    encoded = Encoded([[1] * n for n in (3, 9, 4, 7, 5)], [[0] * n for n in (3, 9, 4, 7, 5)], None, 0)
    batches = [list(evaluation_rows(encoded, 2, rank, 2)) for rank in range(2)]
    assert sorted(np.concatenate([*batches[0], *batches[1]])) == [0, 1, 2, 3, 4]
    assert [len(rows) for rows in batches[0]] == [2, 1]
    assert [len(rows) for rows in batches[1]] == [2, 0]  # empty, because all ranks need the same number of batches


def test_batch_is_padded_and_its_padding_masked():
    encoded = Encoded([[2, 5, 3], [2, 3]], [[0, 0, 1], [0, 0]], np.array([1.0, 0.0]), 0)
    inputs, labels = collate(encoded, np.array([1, 0]), 9, torch.device("cpu"), classes=True)
    assert inputs["input_ids"].tolist() == [[2, 3, 9], [2, 5, 3]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert inputs["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert labels.tolist() == [0, 1]


def test_metrics_equal_values_computed_by_hand():
    # 3 true positives, 1 false positive, 1 false negative, 1 true negative.
    predicted, labels = [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0]
    found = score(("accuracy", "f1", "matthews"), predicted, labels)
    assert found["accuracy"] == pytest.approx(100 * 4 / 6)
    assert found["f1"] == pytest.approx(100 * 6 / 8)
    assert found["matthews"] == pytest.approx(100 * (3 * 1 - 1 * 1) / np.sqrt(4 * 4 * 2 * 2))
    found = score(("pearson", "spearman"), [1.0, 2.0, 3.0, 10.0], [1.0, 2.0, 3.0, 4.0])
    assert found["spearman"] == pytest.approx(100)
    assert found["pearson"] == pytest.approx(100 * 14 / np.sqrt(50 * 5))
    assert score(("matthews", "pearson"), [1.0, 1.0], [0.0, 1.0]) == {"matthews": 0.0, "pearson": 0.0}
    assert mean_score({"a": 80.0, "b": 90.0}) == 85.0


@pytest.mark.parametrize(
    ("task", "predictions", "lines"),
    [
        ("CoLA", [1, 0], ["0\t1", "1\t0"]),
        ("MNLI", [0, 1, 2], ["0\tentailment", "1\tneutral", "2\tcontradiction"]),
        ("QNLI", [1], ["0\tnot_entailment"]),
        ("STS-B", [2.5, 0], ["0\t2.500", "1\t0.000"]),
    ],
)
def test_prediction_files_have_the_leaderboards_format(tmp_path, task, predictions, lines):
    TASKS[task].write_predictions(tmp_path / "x.tsv", np.array(predictions, dtype=float))
    assert (tmp_path / "x.tsv").read_text().splitlines() == ["index\tprediction", *lines]


def test_every_leaderboard_file_belongs_to_a_task():
    files = {split.predictions for task in (*TASKS.values(), DIAGNOSTIC) for split in task.test}
    names = "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm QNLI RTE WNLI AX"
    assert files == {f"{name}.tsv" for name in names.split()}


def test_tasks_are_found_by_name_in_any_case():
    assert [task.name for task in find_tasks(["cola", "rte", "CoLA"])] == ["CoLA", "RTE"]
    assert len(find_tasks(["all"])) == 9
    message = "--task AX: unknown task; must be all, or .*; the diagnostic set AX is predicted with"
    with pytest.raises(ValueError, match=message):
        find_tasks(["AX"])
