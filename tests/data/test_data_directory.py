"""A directory of several sequence lengths gives the run's own; what is not there is said with what is."""

import shutil

import pytest

from bert_pld.data.data_directory import resolve_data_dir
from bert_pld.data.rows import ShardedRows


@pytest.fixture
def of_two_lengths(make_data_dir, tmp_path_factory):
    parent = tmp_path_factory.mktemp("lengths")
    for length in (16, 128):
        directory, _ = make_data_dir(seq_length=length)
        shutil.copytree(directory, parent / f"seq_{length}")
    (parent / "seq_later").mkdir()
    (parent / "seq_999").write_text("not a directory")
    return parent


def test_the_part_of_the_run_s_length_is_taken(of_two_lengths):
    for length in (16, 128):
        directory = resolve_data_dir(of_two_lengths, length)
        assert directory == of_two_lengths / f"seq_{length}"
        assert ShardedRows(directory, "train").attributes.seq_length == length


def test_another_length_lists_what_is_there(of_two_lengths):
    with pytest.raises(ValueError, match=r"no seq_999 for data\.seq_length 999; there are seq_16, seq_128$"):
        resolve_data_dir(of_two_lengths, 999)


def test_a_data_directory_is_itself_whatever_lies_in_it(make_data_dir, tmp_path_factory):
    directory, _ = make_data_dir()
    (directory / "seq_128").mkdir()
    assert resolve_data_dir(directory, 128) == directory
    empty = tmp_path_factory.mktemp("empty")
    for nothing in (empty, empty / "nowhere"):
        assert resolve_data_dir(nothing, 128) == nothing
        with pytest.raises(ValueError, match="data directory"):
            ShardedRows(resolve_data_dir(nothing, 128), "train")
