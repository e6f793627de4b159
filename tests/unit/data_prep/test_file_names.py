"""Names of files and folders that are not UTF-8: from the build to training, or one line at the start."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up_corpus import build, write_corpus
from runs import clean_environment, run_captured

from bert_pld import export, finetune_glue, pretrain
from bert_pld.checkpoint.format import resolve_checkpoint
from bert_pld.data.nvidia_rows import open_rows
from bert_pld.data.shards import Manifest
from bert_pld.plot import read_run
from data_prep.__main__ import main

LATIN = os.fsdecode(b"caf\xe9")
"""A name in Latin-1, as Python represents it."""


def test_corpus_and_data_directory_with_such_names_are_built_verified_and_opened(tmp_path, capsys):
    corpus, data_dir = write_corpus(tmp_path / LATIN, files=1, documents=20), tmp_path / f"{LATIN}_shards"
    (corpus / "part_0.txt").rename(corpus / f"{LATIN}.txt")
    assert build(corpus, data_dir) == 0
    assert build(corpus, data_dir) == 0
    assert "complete; nothing to do" in capsys.readouterr().out
    assert main(["verify", str(data_dir)]) == 0
    rows = open_rows(data_dir, "train")
    assert rows.read(np.arange(len(rows)))["length"].min() > 2
    assert Manifest.read(data_dir).attributes.source == f"text={tmp_path}/caf\\udce9"
    card = (data_dir / "data_card.json").read_bytes().decode("utf-8")
    assert json.loads(card)["build"]


NAMES = """
import sys
from pathlib import Path
from bert_pld.files import printable, require_utf8
sys.stdout.buffer.write(ascii(printable(sys.argv[1])).encode())
require_utf8("--output_dir", Path(sys.argv[2]))
"""


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_a_name_is_the_same_text_in_every_locale(utf8):
    """So that a build's shards have the same bytes. The locale POSIX decodes names as ASCII."""
    environment = {**clean_environment(), "LC_ALL": "POSIX", "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", NAMES, "corpus/ü\udce9", "runs/ü"]
    assert run_captured(command, env=environment).stdout == ascii("corpus/ü\\udce9")


def test_runs_models_and_checkpoints_with_such_names_are_refused_at_once(tmp_path):
    """The library of their files opens only names in UTF-8."""
    run_dir, other = tmp_path / LATIN, tmp_path / "other"
    calls = [
        (pretrain.main, {"output_dir": run_dir}),
        (export.main, {"output_dir": run_dir, "checkpoint": other}),
        (export.main, {"output_dir": other, "checkpoint": run_dir, "overwrite": False}),
    ]
    names = {"task": ["RTE"], "glue_dir": "x", "summarize": None, "json": None, "plot": None}
    calls += [(finetune_glue.main, {**names, "model": str(run_dir), "output_dir": other})]
    calls += [(finetune_glue.main, {**names, "model": "x", "output_dir": run_dir})]
    for command, options in calls:
        with pytest.raises(ValueError, match=r"caf\udce9: its name is not UTF-8, which .* rename the folder$"):
            command(argparse.Namespace(**options))
    with pytest.raises(ValueError, match="its name is not UTF-8"):
        resolve_checkpoint(Path(run_dir))


def test_label_of_a_run_with_such_a_name_can_be_drawn(tmp_path):
    run_dir = tmp_path / LATIN
    run_dir.mkdir()
    record = {
        "step": 1,
        "samples": 8,
        "seconds": 1.0,
        "loss": 5.0,
        "mlm_loss": 5.0,
        "theta": 1.0,
        "kept_blocks": 2.0,
        "lr": 0.1,
    }
    (run_dir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert read_run(run_dir).label == "caf\\udce9"
