"""Mapped files: their bytes, descriptors and lifetime; a process can open thousands of shards."""

import dataclasses
import gc
import os
import pickle
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from synthetic_rows import make_rows

from bert_pld.data.opening import map_file
from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import Manifest, ShardAttributes, write_shard


def maps_of(path):
    return sum(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_map_is_read_only_and_keeps_no_descriptor(tmp_path):
    path = tmp_path / "file"
    content = bytes(range(256)) * 33
    path.write_bytes(content)
    before = descriptors()
    array = map_file(path)
    assert array.tobytes() == content
    assert descriptors() == before
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    view = array[256:512].view(np.uint16).reshape(16, 8)
    del array
    gc.collect()
    assert maps_of(path) == 1
    assert view[0, 0] == 0x0100
    del view
    gc.collect()
    assert maps_of(path) == 0


def test_empty_file_maps_to_an_empty_array_and_missing_file_is_an_error(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert map_file(tmp_path / "empty").shape == (0,)
    with pytest.raises(FileNotFoundError):
        map_file(tmp_path / "missing")


def test_read_ahead_covers_the_rows_of_every_shard_in_requests_within_linuxs_limit(make_data_dir, monkeypatch):
    directory, _ = make_data_dir(counts=(4000, 0, 1000), seq_length=64)
    rows, requested = ShardedRows(directory, "train"), {}

    def record(descriptor, offset, length, advice):
        assert advice == os.POSIX_FADV_WILLNEED
        assert 0 < length <= 128 << 10
        requested.setdefault(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, []).append((offset, length))

    monkeypatch.setattr(os, "posix_fadvise", record)
    rows.read_ahead(1000, 10_000)  # to the end of the split
    assert sorted(requested) == ["train_00000.hdf5", "train_00002.hdf5"]
    row_sizes = {"input_ids": 128, "length": 2, "segment_b_start": 2, "next_sentence_label": 1}
    for name, first, count, shard in (("train_00000.hdf5", 1000, 3000, 0), ("train_00002.hdf5", 0, 1000, 2)):
        expected = set()
        for column, row_bytes in row_sizes.items():
            start = rows.shard(shard).offsets[column] + first * row_bytes
            expected |= set(range(start, start + count * row_bytes))
        assert set().union(*(range(offset, offset + length) for offset, length in requested[name])) == expected


def test_reading_ahead_is_left_out_where_a_shard_cannot_be_opened_again(make_data_dir):
    """A mapped shard that was replaced or removed is still read; read-ahead only makes reading faster."""
    directory, written = make_data_dir()
    rows = ShardedRows(directory, "train")
    rows.read(np.arange(37))
    for path in directory.glob("train_*.hdf5"):
        path.unlink()
    rows.read_ahead(0, 37)
    assert (rows.read(np.arange(37))["input_ids"] == written["train"]["input_ids"]).all()


def test_two_thousand_shards_open_quickly_within_32_descriptors(tmp_path):
    attributes = ShardAttributes("h", 1000, "uncased", 16, "mlm+nsp", "s", 0)
    rows = make_rows(np.random.Generator(np.random.PCG64(0)), 3, 16, 1000)
    record = write_shard(tmp_path / "train_00000.hdf5", rows, attributes)
    records = [dataclasses.replace(record, file=f"train_{index:05d}.hdf5") for index in range(2000)]
    for other in records[1:]:
        os.link(tmp_path / record.file, tmp_path / other.file)
    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    Manifest(attributes, {"train": records}, {"train": 1}, special).write(tmp_path)
    limits, before = resource.getrlimit(resource.RLIMIT_NOFILE), descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 32, limits[1]))
    try:
        started = time.process_time()
        split = ShardedRows(tmp_path, "train")
        opening = time.process_time() - started
        found = split.read(np.arange(0, 6000, 3)[::-1])
        reading = time.process_time() - started - opening
        assert descriptors() == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (found["input_ids"] == rows["input_ids"][0]).all()
    assert maps_of(tmp_path) <= 2000
    assert opening < 2
    assert reading < 60  # about 4 on an idle machine
    assert len(pickle.dumps(split)) < 500_000
