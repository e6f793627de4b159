"""A vocab.txt written on Windows: with CRLF, with a byte order mark, or without a line end at its end."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from runs import VOCABULARY
from static_shards import write_static_corpus

from bert_pld.data.nvidia_rows import open_rows
from bert_pld.data.rows import ShardedRows
from bert_pld.data.tokenizer import read_entries
from data_prep.rows.vocabulary import read_vocabulary
from data_prep.verify import verify

KINDS = list(itertools.product(["\n", "\r\n"], ["", "\ufeff"], [True, False]))


def written(entries, line_end, mark, ends):
    return (mark + line_end.join(entries) + line_end * ends).encode("utf-8")


@pytest.mark.parametrize(("line_end", "mark", "ends"), KINDS)
def test_entries_are_the_same_however_the_file_was_written(line_end, mark, ends, tmp_path):
    path, entries = tmp_path / "vocab.txt", [*VOCABULARY, "a\u2028b", "\x85", "##é", "\ufeff"]
    path.write_bytes(written(entries, line_end, mark, ends))
    assert read_entries(path) == entries
    assert list(read_vocabulary(path, cased=False).entries) == entries


@pytest.mark.parametrize(("line_end", "mark", "ends"), KINDS)
def test_nvidias_shards_are_read_with_it_and_the_run_gets_a_plain_one(line_end, mark, ends, tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PLD_CACHE", str(tmp_path / "cache"))
    columns = write_static_corpus(tmp_path / "d", train=(5,))["train"]
    (tmp_path / "d" / "vocab.txt").write_bytes(written(VOCABULARY, line_end, mark, ends))
    rows = open_rows(tmp_path / "d", "train")
    np.testing.assert_array_equal(rows.read(np.arange(5))["input_ids"], columns["input_ids"])
    rows.save_tokenizer(tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes() == written(VOCABULARY, "\n", "", True)


def test_native_shards_accept_it_too(make_data_dir, tmp_path):
    folder, _ = make_data_dir()
    path = folder / "vocab.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(read_entries(path)) == ShardedRows(folder, "train").attributes.vocabulary_size
    assert not [fault for fault in verify(folder) if "vocab.txt" in fault]


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_an_error_of_one_line(encoding, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("[PAD]\né\n".encode(encoding))
    with pytest.raises(
        ValueError, match=r"^--vocab \S+vocab\.txt: not a readable vocabulary \(not UTF-8 at byte \d\)$"
    ):
        read_vocabulary(path, cased=False)
