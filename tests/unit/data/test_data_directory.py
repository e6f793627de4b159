"""A build for several sequence lengths: which directory is chosen, and what the error lists."""

import shutil

import pytest

from bert_pld.data.rows import ShardedRows, resolve_data_dir


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
