"""An error is one line; where it was raised is printed on request."""

from __future__ import annotations

import pytest

from bert_pld import plan
from bert_pld.cli import run
from bert_pld.config.errors import ConfigError, explaining


def errors_of(capsys, *arguments):
    with pytest.raises(SystemExit) as exited:
        run(plan.main, plan.build_parser(), ["--deepspeed_config", "absent.json", *arguments])
    assert exited.value.code == 1
    return capsys.readouterr().err


def test_traceback_is_printed_on_request_only(capsys, monkeypatch):
    line = "error: absent.json: cannot read the configuration (No such file or directory)\n"
    assert errors_of(capsys) == line
    shown = errors_of(capsys, "--traceback")
    assert "Traceback (most recent call last)" in shown
    assert "FileNotFoundError" in shown
    assert shown.endswith(line)
    monkeypatch.setenv("BERT_PLD_TRACEBACK", "1")
    assert "Traceback" in errors_of(capsys)
    monkeypatch.setenv("BERT_PLD_TRACEBACK", "0")
    assert errors_of(capsys) == line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (AssertionError(), "ds.json: the run cannot be set up (AssertionError); --traceback shows where"),
        (
            RuntimeError("out of\n memory"),
            "ds.json: the run cannot be set up (RuntimeError: out of memory)",
        ),
        (TypeError("got 'x'"), "ds.json: the run cannot be set up (TypeError: got 'x'); --traceback shows where"),
        (ValueError("lr: -1"), "ds.json: lr: -1"),
        (ConfigError("ds.json: lr: -1"), "ds.json: lr: -1"),
    ],
)
def test_exception_of_the_set_up_is_one_line_with_its_cause(error, line):
    with pytest.raises(ConfigError) as raised, explaining("ds.json"):
        raise error
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is error


def test_missing_package_and_unreadable_file_keep_their_own_explanation():
    for error in (ModuleNotFoundError("No module named 'wandb'"), PermissionError(13, "Permission denied", "x")):
        with pytest.raises(type(error)), explaining("ds.json"):
            raise error
