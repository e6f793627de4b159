"""Several ranks print what all of them have to say once, and each what only it knows."""

from __future__ import annotations

import argparse
import itertools
import socket

import pytest

from bert_pld.cli import print_once, run
from bert_pld.cluster import one_rank
from bert_pld.cluster.one_rank import OneRankError, naming_this_rank, naming_this_rank_if_alone
from bert_pld.config import ConfigError

SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}
LAUNCHED = {"RANK": "2", "WORLD_SIZE": "4"}
VARIABLES = ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")


@pytest.fixture
def printed(monkeypatch, capsys):
    """What a process with these variables prints on stderr about a warning and an error."""

    def print_as(variables, error, joining=False):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

        def main(_):
            print_once("warning", ["unknown key"])
            if not joining:
                raise error
            with naming_this_rank():
                raise error

        with pytest.raises(SystemExit) as exited:
            run(main, argparse.ArgumentParser(), [])
        assert exited.value.code == 1
        return capsys.readouterr().err

    return print_as


@pytest.mark.parametrize(
    ("variables", "prints"),
    [
        (SLURM, False),
        (LAUNCHED, False),
        ({**SLURM, "SLURM_PROCID": "0"}, True),
        ({**LAUNCHED, "RANK": "0"}, True),
        ({**SLURM, "RANK": "0"}, True),  # A launcher has precedence.
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, True),
        ({"SLURM_PROCID": "0"}, True),
        ({}, True),
    ],
)
def test_warning_and_error_of_all_ranks_are_printed_by_rank_0(variables, prints, printed):
    expected = "warning: unknown key\nerror: ds.json: lr: -1\n" if prints else ""
    assert printed(variables, ConfigError("ds.json: lr: -1")) == expected


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError("cannot connect to\n rank 0"), "cannot connect to rank 0"),
        (
            RuntimeError("invalid device ordinal"),
            "the run cannot be set up (RuntimeError: invalid device ordinal); --traceback shows where",
        ),
    ],
)
def test_error_of_a_rank_that_joins_is_printed_by_that_rank(error, text, printed):
    assert printed(LAUNCHED, error, joining=True) == f"error: rank 2 (host {socket.gethostname()}): {text}\n"


def test_single_rank_and_rank_without_a_number_keep_the_error(printed):
    single = {"RANK": "0", "WORLD_SIZE": "1"}
    assert printed(single, OSError("x"), joining=True) == "warning: unknown key\nerror: x\n"
    assert printed(SLURM, ValueError("no host found"), joining=True) == ""


@pytest.mark.parametrize("error", [ValueError("train.tsv: no header"), FileNotFoundError("train.tsv: no header")])
def test_rank_that_fails_alone_names_itself_after_waiting(error, monkeypatch):
    monkeypatch.setattr(one_rank, "WAIT_FOR_RANK_0_S", 0.2)
    monkeypatch.setenv("RANK", "2")
    polls = itertools.count()
    with (
        pytest.raises(OneRankError, match=rf"^rank 2 \(host {socket.gethostname()}\): train.tsv: no header$"),
        naming_this_rank_if_alone(lambda: next(polls) < 0),
    ):
        raise error
    assert next(polls) >= 2


def test_rank_keeps_an_error_that_rank_0_prints(monkeypatch):
    """The launcher stops a rank if rank 0 has failed, too; rank 0 itself and a single process do not wait."""
    polls = itertools.count()
    for rank, told_at in (("2", 1), ("0", None), (None, None)):
        monkeypatch.delenv("RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        with (
            pytest.raises(ValueError, match=r"^train\.tsv: no header$") as raised,
            naming_this_rank_if_alone(lambda told_at=told_at: next(polls) == told_at),
        ):
            raise ValueError("train.tsv: no header")
        assert not isinstance(raised.value, OneRankError)
    assert next(polls) == 2
