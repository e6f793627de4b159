"""File systems without locks: shards are read, shared work is done, and what is not protected is said."""

from __future__ import annotations

import errno
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from static_shards import write_static_corpus

from bert_pld.data.nvidia_format import read_header
from bert_pld.data.nvidia_rows import open_rows
from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import Shard
from bert_pld.files import FileLock, locked

NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO]


@pytest.fixture
def static_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "static", write_static_corpus(tmp_path / "static")


@pytest.fixture(params=NO_LOCKS, ids=errno.errorcode.get)
def no_locks(request, monkeypatch):
    """The system's lock calls fail as on a file system without locks."""

    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)


def test_shards_are_read_while_another_process_holds_hdf5s_lock(make_data_dir, static_dir):
    """HDF5 locks what it opens, also for reading, and reports a file that it cannot lock as unreadable."""
    native, static = make_data_dir()[0], static_dir[0]
    for path, read in [(native / "train_00000.hdf5", Shard), (static / "books_training_0.hdf5", read_header)]:
        with open(path, "rb+") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(BlockingIOError):
                h5py.File(path, "r")
            assert read(path).rows in (23, 41)


@pytest.mark.parametrize("number", NO_LOCKS, ids=errno.errorcode.get)
def test_a_lock_that_the_environment_asks_for_is_named(number, make_data_dir, monkeypatch):
    def refuse(*_, **__):
        text = f"Unable to synchronously open file (unable to lock file, errno = {number}, error message = '…')"
        raise OSError(number, text)

    path = make_data_dir()[0] / "train_00000.hdf5"
    monkeypatch.setattr(h5py, "File", refuse)
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")
    with pytest.raises(ValueError) as error:
        Shard(path)
    assert str(error.value) == (
        f"{path}: cannot be locked ({os.strerror(number)}), and HDF5_USE_FILE_LOCKING=TRUE asks for a lock; unset it,"
        " or set it to FALSE: reading needs none"
    )


def test_what_the_system_says_is_the_cause(make_data_dir):
    folder = make_data_dir()[0]
    with pytest.raises(ValueError, match=r"gone\.hdf5: cannot be read \(No such file or directory\)$"):
        Shard(folder / "gone.hdf5")
    with pytest.raises(ValueError, match=r": cannot be read \(.*\)$"):
        Shard(folder)


def test_lock_is_held_busy_or_unsupported(tmp_path):
    with locked(tmp_path / "lock") as first, locked(tmp_path / "lock") as second:
        assert (first, second) == (FileLock.HELD, FileLock.BUSY)
    with locked(tmp_path / "lock") as third:
        assert third is FileLock.HELD


def test_file_system_without_locks_is_recognized(no_locks, tmp_path):
    with locked(tmp_path / "lock") as obtained:
        assert obtained is FileLock.UNSUPPORTED


def test_several_processes_unpack_the_same_shards_without_locks(no_locks, static_dir):
    folder, written = static_dir
    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(lambda _: open_rows(folder, "train"), range(4)))
    for rows in opened:
        columns = rows.read(np.arange(len(rows)))
        np.testing.assert_array_equal(columns["input_ids"], written["train"]["input_ids"])


def test_reading_needs_no_locks(no_locks, make_data_dir):
    folder, written = make_data_dir()
    rows = ShardedRows(folder, "train")
    np.testing.assert_array_equal(rows.read(np.arange(len(rows)))["length"], written["train"]["length"])
