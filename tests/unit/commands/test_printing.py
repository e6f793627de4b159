"""Commands print on terminals and into logs of any encoding."""

from __future__ import annotations

import argparse
import io
import json
import re
import sys

import pytest
from repository import REPOSITORY
from runs import small_config

from bert_pld import plan, status
from bert_pld.cli import make_parser, run
from data_prep.__main__ import main as data_prep

TEXT = "θ 0.500 × – … 日本 \udce9"
"""The last character stands for a byte of a file name that is not UTF-8."""


ENCODINGS = ["ascii", "latin-1", "cp1252", "utf-8", "euc-jp"]


class Streams:
    """Strict stdout and stderr of an encoding for this process; what is printed, as bytes."""

    def __init__(self, encoding, monkeypatch):
        self.encoding = encoding
        self.stdout, self.stderr = (io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2))
        monkeypatch.setattr(sys, "stdout", self.stdout)
        monkeypatch.setattr(sys, "stderr", self.stderr)

    def encoded(self, text):
        return text.encode(self.encoding, "backslashreplace")

    def printed(self, name="stdout"):
        stream = getattr(self, name)
        stream.flush()
        return stream.buffer.getvalue()


def call(main, parser, arguments):
    with pytest.raises(SystemExit) as leaving:
        run(main, parser, [str(argument) for argument in arguments])
    return leaving.value.code


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_characters_that_the_encoding_lacks_are_escaped(encoding, monkeypatch):
    streams = Streams(encoding, monkeypatch)

    def main(_: argparse.Namespace) -> None:
        print(TEXT)
        print(TEXT, file=sys.stderr)

    assert call(main, make_parser("x", "x", "x"), []) == 0
    for name in ("stdout", "stderr"):
        assert streams.printed(name) == streams.encoded(f"{TEXT}\n")


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
@pytest.mark.parametrize("code", [0, 3])
def test_command_with_a_closed_stream_ends_with_its_own_exit_code(closed, code, monkeypatch):
    """Python has None for a stream that was closed when it started, as by `>&-`."""
    monkeypatch.setattr(sys, closed, None)
    assert call(lambda _: code, make_parser("x", "x", "x"), []) == code


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_status_plan_and_data_prep_print_in_every_encoding(encoding, tmp_path, monkeypatch):
    streams = Streams(encoding, monkeypatch)
    run_dir = tmp_path / "run–1"
    run_dir.mkdir()
    record = {"step": 3, "seconds": 1.0, "loss": 5.0, "theta": 0.5, "kept_blocks": 2.0, "tokens_per_s": 9.0}
    (run_dir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert call(status.main, status.build_parser(), [run_dir]) == 0
    config = tmp_path / "ds.json"
    config.write_text(json.dumps(small_config()))
    assert call(plan.main, plan.build_parser(), ["--deepspeed_config", config]) == 0
    assert data_prep(["sources"]) == 0
    assert data_prep(["verify", str(tmp_path / "データ\udce9")]) == 1
    assert streams.encoded("θ 0.500") in streams.printed()
    assert streams.printed("stderr").startswith(b"error: ")


def test_every_command_starts_through_run():
    """`run` and `data_prep`'s `main` are where output is made safe; `python -m` on another module would skip it."""
    starts = [path for path in (REPOSITORY / "bert_pld").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")]
    assert len(starts) >= 8
    for path in starts:
        assert re.search(r"\brun(_command|_as_rank)?\(main, |has moved", path.read_text(encoding="utf-8")), path
