"""Native shards: rows round-trip, files are reproducible byte for byte, damage is reported with the file.

A build for several sequence lengths: which directory is chosen, and what the error lists.
"""

import dataclasses
import functools
import json
import operator
import pickle
import shutil
import time

import h5py
import numpy as np
import pytest
from synthetic_rows import make_rows

from bert_pld.data.rows import ShardedRows, resolve_data_dir
from bert_pld.data.shards import Manifest, Shard, ShardAttributes, write_shard
from bert_pld.files import file_sha256


@pytest.mark.parametrize(("vocabulary_size", "dtype"), [(1000, np.uint16), (65_536, np.uint16), (65_537, np.uint32)])
def test_rows_are_read_as_written(make_data_dir, vocabulary_size, dtype):
    directory, written = make_data_dir(vocabulary_size=vocabulary_size)
    rows = ShardedRows(directory, "train")
    assert len(rows) == 37
    assert rows.shard(0).columns["input_ids"].dtype == dtype
    indices = np.array([36, 0, 22, 23, 5, 5, 1])
    read = rows.read(indices)
    for name, column in written["train"].items():
        assert read[name].dtype == np.int64
        assert (read[name] == column[indices]).all(), name
    assert rows.manifest.tokens("train") == written["train"]["length"].sum()


def test_ids_beyond_uint16_are_stored_as_uint32(tmp_path):
    rows = make_rows(np.random.Generator(np.random.PCG64(0)), 3, 16, 100_000)
    rows["input_ids"][1, 1] = 99_999
    write_shard(tmp_path / "x.hdf5", rows, ShardAttributes("h", 100_000, "cased", 16, "mlm+nsp", "s", 0))
    assert Shard(tmp_path / "x.hdf5").columns["input_ids"][1, 1] == 99_999


@pytest.mark.parametrize("identity", [-1, 1000, 66_000])
def test_ids_outside_the_vocabulary_are_refused(tmp_path, identity):
    rows = make_rows(np.random.Generator(np.random.PCG64(0)), 3, 16, 1000)
    rows["input_ids"][1, 1] = identity
    with pytest.raises(ValueError, match=r"not all in \[0, 1000\)"):
        write_shard(tmp_path / "x.hdf5", rows, ShardAttributes("h", 1000, "cased", 16, "mlm+nsp", "s", 0))
    assert not list(tmp_path.iterdir())


def test_same_rows_give_the_same_bytes(tmp_path):
    rows = make_rows(np.random.Generator(np.random.PCG64(0)), 50, 16, 1000)
    attributes = ShardAttributes("h" * 64, 1000, "cased", 16, "mlm+nsp", "wikipedia-dump=a, books=b", 0)
    first = write_shard(tmp_path / "a.hdf5", rows, attributes)
    time.sleep(1.1)  # HDF5's timestamps have seconds
    second = write_shard(tmp_path / "a.hdf5", rows, attributes)
    assert first == second
    assert first.sha256 == file_sha256(tmp_path / "a.hdf5")
    assert first.bytes == (tmp_path / "a.hdf5").stat().st_size


def test_manifest_round_trip_and_fingerprint(make_data_dir):
    directory, _ = make_data_dir()
    manifest = Manifest.read(directory)
    manifest.write(directory)
    assert Manifest.read(directory) == manifest
    record = dataclasses.replace(manifest.splits["train"][0], sha256="0" * 64)
    changed = dataclasses.replace(manifest, splits={**manifest.splits, "train": [record]})
    assert changed.fingerprint() != manifest.fingerprint()


def test_pickled_rows_read_the_same(make_data_dir):
    rows = ShardedRows(make_data_dir()[0], "train")
    before = rows.read(np.arange(37))
    after = pickle.loads(pickle.dumps(rows)).read(np.arange(37))
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize("outside", [-1, 37])
def test_rows_out_of_range_are_refused(train_rows, outside):
    with pytest.raises(ValueError, match=r"split 'train' has \[0, 37\)"):
        train_rows.read(np.array([3, outside]))


def test_truncated_and_missing_shards_are_reported_when_opened(make_data_dir):
    directory, _ = make_data_dir()
    path = directory / "train_00002.hdf5"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"train_00002\.hdf5: has \d+ bytes; the manifest\.json says"):
        ShardedRows(directory, "train")
    with pytest.raises(ValueError, match=r"train_00002\.hdf5: "):
        Shard(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"train_00002\.hdf5: is missing"):
        ShardedRows(directory, "train")
    path.write_bytes(b"x" * len(whole))
    with pytest.raises(ValueError, match=r"train_00002\.hdf5: not a readable HDF5 file"):
        ShardedRows(directory, "train").read(np.array([30]))


def test_shards_of_another_directory_or_format_are_refused(make_data_dir, tmp_path_factory):
    directory, _ = make_data_dir()
    rows = make_rows(np.random.Generator(np.random.PCG64(9)), 14, 32, 1000)
    others = dataclasses.replace(Manifest.read(directory).attributes, vocabulary_hash="f" * 64)
    write_shard(directory / "train_00002.hdf5", rows, others)
    with pytest.raises(ValueError, match=r"train_00002\.hdf5: does not belong to this directory's manifest"):
        ShardedRows(directory, "train").read(np.array([30]))
    other = tmp_path_factory.mktemp("other") / "other.hdf5"
    with h5py.File(other, "w") as file:
        file["input_ids"] = np.zeros((2, 4), np.int32)
    with pytest.raises(ValueError, match=r"other\.hdf5: not a bert_pld shard of version 1"):
        Shard(other)


def test_columns_with_chunks_or_wrong_type_are_refused(make_data_dir):
    directory, _ = make_data_dir()
    path = directory / "train_00000.hdf5"
    with h5py.File(path, "r+") as file:
        del file["length"]
        file["length"] = np.zeros(23, np.int32)
    with pytest.raises(ValueError, match=r"column length is int32 \[23\], expected uint16 \[23\]"):
        Shard(path)
    with h5py.File(path, "r+") as file:
        del file["length"]
        file.create_dataset("length", data=np.zeros(23, np.uint16), chunks=(4,))
    with pytest.raises(ValueError, match="not contiguous"):
        Shard(path)


def test_directories_without_data_and_damaged_manifests_are_reported(tmp_path, make_data_dir):
    with pytest.raises(ValueError, match="missing: does not exist"):
        ShardedRows(tmp_path / "missing", "train")
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        ShardedRows(tmp_path, "train")
    directory, _ = make_data_dir()
    with pytest.raises(ValueError, match="split 'test' has no rows"):
        ShardedRows(directory, "test")
    for text in ("{", "[]", '{"format": "bert_pld", "version": 1, "attributes": {}}'):
        (directory / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json: damaged manifest"):
            Manifest.read(directory)
    (directory / "manifest.json").write_text('{"format": "bert_pld", "version": 3}')
    with pytest.raises(ValueError, match="not a bert_pld manifest of version 1"):
        Manifest.read(directory)


FIRST = ("splits", "train", 0)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((*FIRST, "rows"), "23", "splits.train[0].rows is '23'; must be an integer >= 0"),
        ((*FIRST, "rows"), None, "splits.train[0].rows is None; must be an integer >= 0"),
        ((*FIRST, "rows"), 23.0, "splits.train[0].rows is 23.0; must be an integer >= 0"),
        ((*FIRST, "tokens"), True, "splits.train[0].tokens is True; must be an integer >= 0"),
        ((*FIRST, "bytes"), -1, "splits.train[0].bytes is -1; must be an integer >= 0"),
        ((*FIRST, "rows"), 2**63, f"splits.train[0].rows is {2**63}; must be an integer >= 0"),
        ((*FIRST, "sha256"), 5, "splits.train[0].sha256 is 5; must be a text"),
        ((*FIRST, "file"), "validation_00000.hdf5", "lists validation_00000.hdf5 twice; a shard may be in one split"),
        (("special_tokens",), [], "special_tokens is []; must be an object"),
        (("special_tokens", "cls"), "2", "special_tokens.cls is '2'; must be an integer >= 0"),
        (("special_tokens",), {"pad": 0, "sep": 3}, "special_tokens has no cls, mask; required: pad, cls, sep, mask"),
        (("documents",), None, "documents is None; must be an object"),
        (("attributes", "vocabulary_size"), "600", "attributes.vocabulary_size is '600'; must be an integer >= 1"),
        (("attributes", "seq_length"), 0, "attributes.seq_length is 0; must be an integer >= 1"),
        (("attributes", "casing"), 1, "attributes.casing is 1; must be a text"),
        (("attended_tokens",), "x", "attended_tokens is 'x'; must be a number >= 0"),
    ],
)
def test_value_of_another_type_in_a_manifest_is_named(make_data_dir, place, value, message):
    directory, _ = make_data_dir()
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    assert content["splits"]["validation"][0]["file"] == "validation_00000.hdf5"
    *outer, last = place
    functools.reduce(operator.getitem, outer, content)[last] = value
    path.write_text(json.dumps(content))
    for opened in (Manifest.read, lambda folder: ShardedRows(folder, "train")):
        with pytest.raises(ValueError, match=r"^\S+manifest\.json: damaged manifest \(") as caught:
            opened(directory)
        assert f"({message}" in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 200_000, "9" * 5000])
def test_manifest_that_python_cannot_parse_is_an_error_of_one_line(make_data_dir, text):
    directory, _ = make_data_dir()
    (directory / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: damaged manifest \(\w+Error"):
        Manifest.read(directory)


@pytest.fixture
def two_lengths(make_data_dir, tmp_path_factory):
    parent = tmp_path_factory.mktemp("lengths")
    for length in (16, 128):
        directory, _ = make_data_dir(seq_length=length)
        shutil.copytree(directory, parent / f"seq_{length}")
    (parent / "seq_later").mkdir()
    (parent / "seq_999").write_text("not a directory")
    return parent


def test_directory_of_the_runs_length_is_chosen(two_lengths):
    for length in (16, 128):
        directory = resolve_data_dir(two_lengths, length)
        assert directory == two_lengths / f"seq_{length}"
        assert ShardedRows(directory, "train").attributes.seq_length == length


def test_missing_length_is_an_error_that_lists_the_others(two_lengths):
    with pytest.raises(ValueError, match=r"no seq_999 for data\.seq_length 999; found seq_16, seq_128$"):
        resolve_data_dir(two_lengths, 999)


def test_directory_with_a_manifest_or_without_lengths_is_returned_unchanged(make_data_dir, tmp_path_factory):
    directory, _ = make_data_dir()
    (directory / "seq_128").mkdir()
    assert resolve_data_dir(directory, 128) == directory
    empty = tmp_path_factory.mktemp("empty")
    for other in (empty, empty / "missing"):
        assert resolve_data_dir(other, 128) == other
        with pytest.raises(ValueError, match="data directory"):
            ShardedRows(resolve_data_dir(other, 128), "train")
