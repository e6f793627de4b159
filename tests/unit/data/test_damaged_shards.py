"""Random damage to shards: `verify` finds every changed byte, and no damage ends in a crash, a hang or a traceback."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from damage import damage_bytes, damage_structure
from isolated_cases import outcomes
from runs import write_corpus
from static_shards import write_static_corpus

from bert_pld.data.nvidia_rows import open_rows
from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import Manifest, ShardRecord
from bert_pld.files import file_sha256
from data_prep.verify import verify

SHARD, STATIC_SHARD = "train_00000.hdf5", "books_training_0.hdf5"
BAD = ("raised ", "ended by ")


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("native"), train_rows=96, validation_rows=4)


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    folder = tmp_path_factory.mktemp("static")
    write_static_corpus(folder, train=(41,), test=(3,))
    return folder


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """Return a function that copies a data directory and damages one of its files, the same way for the same case."""
    monkeypatch.setenv("BERT_PLD_CACHE", str(tmp_path / "cache"))

    def copy(source, case, file, in_structure):
        folder, draw = tmp_path / str(case), np.random.default_rng(case)
        shutil.copytree(source, folder)
        path = folder / file
        if in_structure:
            return folder, damage_structure(path, draw)
        what, content = damage_bytes(path.read_bytes(), draw)
        path.write_bytes(content)
        return folder, what

    return copy


def read_all(rows):
    return rows.read(np.arange(len(rows)))


def assert_no_crash(found):
    bad = [(case, outcome) for case, outcome in enumerate(found) if str(outcome).startswith(BAD)]
    assert not bad, bad
    for outcome in found:
        assert "\n" not in str(outcome)


@pytest.mark.parametrize("in_structure", [False, True], ids=["bytes", "structure"])
def test_verify_finds_every_damage(native, copy, in_structure):
    def check(case):
        folder, what = copy(native, case, SHARD, in_structure)
        faults = verify(folder, samples=1)
        shutil.rmtree(folder)
        return [what, faults]

    found = outcomes(check)
    assert_no_crash(found)
    for what, faults in found:
        assert any(SHARD in fault for fault in faults), what


@pytest.mark.parametrize("in_structure", [False, True], ids=["bytes", "structure"])
def test_damaged_shard_of_the_listed_size_is_refused_or_read_within_its_limits(native, copy, in_structure):
    """Opening compares sizes, not checksums; so the manifest is made to fit, and what is read must be possible rows."""

    def check(case):
        folder, what = copy(native, case, SHARD, in_structure)
        manifest = Manifest.read(folder)
        record = manifest.splits["train"][0]
        size = (folder / SHARD).stat().st_size
        manifest.splits["train"][0] = ShardRecord(
            record.file, record.rows, record.tokens, size, file_sha256(folder / SHARD)
        )
        manifest.write(folder)
        try:
            verify(folder, samples=1)
            columns = read_all(ShardedRows(folder, "train"))
        finally:
            shutil.rmtree(folder)
        return [what, len(columns["length"]), int(columns["input_ids"].max()), int(columns["length"].max())]

    found = outcomes(check)
    assert_no_crash(found)
    read = [outcome for outcome in found if not isinstance(outcome, str)]
    for what, rows, largest_id, longest in read:
        assert (rows, largest_id < 64, longest <= 32) == (96, True, True), what
    for message in (outcome for outcome in found if isinstance(outcome, str)):
        assert SHARD in message, message


@pytest.mark.parametrize("in_structure", [False, True], ids=["bytes", "structure"])
def test_damaged_shard_of_nvidias_format_is_refused_or_read_within_its_limits(static, copy, in_structure):
    """Such directories have no checksums: only what contradicts the format is found."""

    def check(case):
        folder, what = copy(static, case, STATIC_SHARD, in_structure)
        try:
            rows = open_rows(folder, "train")
            columns = read_all(rows)
        finally:
            shutil.rmtree(folder)
        return [what, len(rows), int(columns["input_ids"].max()), int(columns["length"].max())]

    found = outcomes(check)
    assert_no_crash(found)
    for outcome in found:
        if isinstance(outcome, str):
            assert STATIC_SHARD in outcome, outcome
        else:
            what, _, largest_id, longest = outcome
            assert (largest_id < 64, longest <= 32) == (True, True), what


@pytest.mark.parametrize("name", ["manifest.json", "vocab.txt", "tokenizer.json"])
def test_damage_beside_the_shards_is_found(native, copy, name):
    def check(case):
        folder, what = copy(native, case, name, in_structure=False)
        try:
            return [what, verify(folder, samples=1)]
        finally:
            shutil.rmtree(folder)

    found = outcomes(check)
    assert_no_crash(found)
    if name == "vocab.txt":  # The manifest has a hash of the entries; the other two have none of all their bytes.
        assert [what for what, faults in found if not faults] == []
