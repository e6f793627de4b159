"""metrics.jsonl: appending, reading whole and from the end, and removing the records after a step."""

from __future__ import annotations

import math

import pytest

from bert_pld.training.records import append_record, drop_records_after, read_metrics


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 7):
        append_record(path, {"step": step, "loss": 1.0 / step})
        if step % 2 == 0:
            append_record(path, {"step": step, "eval_mlm_loss": 2.0 / step})
    return path


def steps(records):
    return [record["step"] for record in records]


def test_training_and_evaluation_records_are_read_apart_whole_or_from_the_end(path):
    training, evaluations = read_metrics(path)
    assert (steps(training), steps(evaluations)) == ([1, 2, 3, 4, 5, 6], [2, 4, 6])
    training, evaluations = read_metrics(path, newest=2)
    assert (steps(training), steps(evaluations)) == ([5, 6], [4, 6])


def test_values_that_json_lacks_are_null(path):
    append_record(path, {"step": 7, "loss": math.nan, "grad_norm": math.inf})
    assert read_metrics(path)[0][-1] == {"step": 7, "loss": None, "grad_norm": None}


@pytest.mark.parametrize(
    "line",
    ['{"step": Infinity}', '{"step": 7, "loss": "x"}', '{"step": 7, "loss": [1]}', '{"step": 7, "eval_mlm_loss": ""}'],
)
def test_line_with_something_else_than_a_number_is_named(path, line):
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=rf"^{path}, line 10: not a line of metrics \('{{\"step\"") as error:
        read_metrics(path)
    assert line in str(error.value)


def test_infinite_value_is_read_as_null_and_a_phase_as_text(path):
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"step": 7, "loss": 1e999, "grad_norm": NaN, "phase": "decay"}\n')
    assert read_metrics(path)[0][-1] == {"step": 7, "loss": None, "grad_norm": None, "phase": "decay"}


def test_records_after_a_step_and_damaged_lines_are_removed(path):
    with open(path, "a", encoding="utf-8") as file:
        file.write('\0\0\0\n{"step": 3, "lo')
    with pytest.raises(ValueError, match="line 10: not a line of metrics"):
        read_metrics(path)
    drop_records_after(path, 4)
    training, evaluations = read_metrics(path)
    assert (steps(training), steps(evaluations)) == ([1, 2, 3, 4], [2, 4])
    assert path.read_text().endswith('{"step": 4, "eval_mlm_loss": 0.5}\n')
    drop_records_after(path.with_name("missing.jsonl"), 4)
