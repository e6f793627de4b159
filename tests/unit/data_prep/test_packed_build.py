"""`build --pack documents`: from text to verified shards whose rows say where documents start."""

import json
import shutil

import numpy as np
import pytest
from data_prep_fixtures import rewrite_shard
from made_up_corpus import build

from bert_pld.data.documents import document_lengths, unpack_starts
from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import Manifest
from data_prep.__main__ import main

MISPLACED = "has no document that starts at position 0, or one that starts in the padding"


@pytest.fixture(scope="module")
def packed_build(corpus, sound_build, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("packed") / "data"
    flags = ["--objective", "mlm", "--pack", "documents", "--vocab", str(sound_build / "vocab.txt")]
    assert build(corpus, output_dir, *flags) == 0
    return output_dir


def test_card_and_manifest_know_the_documents_of_the_rows(packed_build):
    card = json.loads((packed_build / "data_card.json").read_text())
    rows = ShardedRows(packed_build, "train")
    columns = rows.read(np.arange(len(rows)))
    starts = unpack_starts(columns["document_starts"], rows.attributes.seq_length)
    lengths, counts = document_lengths(starts, columns["length"])
    attended = (lengths**2).sum() / lengths.sum()
    assert Manifest.read(packed_build).attended_tokens == pytest.approx(attended)
    assert card["documents_in_rows"]["attended_tokens"] == pytest.approx(attended)
    assert card["documents_in_rows"]["a_row"] == pytest.approx(counts.mean(), rel=0.1)
    assert card["arguments"]["pack"] == "documents"
    assert "documents in a row" in (packed_build / "data_card.html").read_text()


def test_build_is_sound(packed_build, capsys):
    assert main(["verify", str(packed_build)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("sound")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("document_starts", (3, 0), 0), f"row 3: {MISPLACED} (1 such rows)"),
        (("document_starts", (4, 0), 3), "row 4: has a document that does not begin with [CLS] (1 such rows)"),
        (("input_ids", (0, -1), 0), "row 0: "),
    ],
)
def test_invalid_starts_are_found(packed_build, tmp_path, capsys, change, message):
    copy = shutil.copytree(packed_build, tmp_path / "copy")
    rewrite_shard(copy / "train_00000.hdf5", *change)
    assert main(["verify", str(copy)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--pack documents: requires --objective mlm; a row of mlm+nsp is one pair"),
        (["--objective", "mlm", "--format", "nvidia"], "--pack documents: requires --format native"),
    ],
)
def test_rows_that_cannot_say_where_documents_start_are_refused(corpus, tmp_path, capsys, flags, message):
    assert build(corpus, tmp_path / "data", "--pack", "documents", *flags) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "data").exists()
