"""Rows that say where their documents start, from the shard to the micro-batch."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from bert_pld.config import DataConfig
from bert_pld.data.documents import document_lengths, misplaced_starts, pack_starts, unpack_starts
from bert_pld.data.loader import evaluation_batches, training_batches
from bert_pld.data.order import BatchShare
from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import Manifest, Shard, write_shard

SEQ = 32


@pytest.fixture
def directory(make_data_dir):
    return make_data_dir(objective="mlm", documents=True)


def batches(directory, micro=4, steps=6, **data):
    rows = ShardedRows(directory, "train")
    share = BatchShare(micro)
    return [
        step[0] for step in training_batches(rows, DataConfig(**{"workers": 0, **data}), share, seed=4, num_steps=steps)
    ]


@pytest.mark.parametrize("seq_length", [8, 20, 32])
def test_starts_are_stored_as_one_bit_a_position(seq_length):
    is_start = np.random.default_rng(0).random((50, seq_length)) < 0.2
    column = pack_starts(is_start)
    assert column.shape == (50, -(-seq_length // 8))
    assert (unpack_starts(column.astype(np.int64), seq_length) == is_start).all()
    assert column[0, 0] & 1 == is_start[0, 0]


def test_documents_fill_their_rows():
    is_start = np.zeros((3, 10), bool)
    is_start[[0, 0, 1, 2, 2, 2], [0, 4, 0, 0, 1, 7]] = True
    lengths, counts = document_lengths(is_start, np.array([10, 3, 9]))
    assert (lengths.tolist(), counts.tolist()) == ([4, 6, 3, 1, 6, 2], [2, 1, 3])
    assert misplaced_starts(is_start, np.array([10, 3, 7])).tolist() == [False, False, True]
    assert misplaced_starts(is_start[:, 1:], np.array([9, 9, 9])).tolist() == [True, True, False]


@pytest.mark.parametrize("workers", [0, 2])
def test_micro_batch_has_the_lengths_of_its_documents(directory, workers):
    path, written = directory
    is_start = unpack_starts(written["train"]["document_starts"], SEQ)
    for batch in batches(path, workers=workers):
        expected = []
        for row, length in zip(batch.row_indices, batch.lengths, strict=True):
            expected += np.diff([*np.flatnonzero(is_start[row]), length]).tolist()
        assert batch.document_lengths.tolist() == expected
        assert batch.model_inputs()["document_lengths"] is batch.document_lengths
        assert len(expected) > len(batch.lengths)


def test_resumed_stream_has_the_same_documents(directory):
    rows, config = ShardedRows(directory[0], "train"), DataConfig(workers=0)
    whole = list(training_batches(rows, config, BatchShare(4), seed=4, num_steps=12))
    rest = list(training_batches(rows, config, BatchShare(4), seed=4, num_steps=5, first_sample=28, first_step=7))
    for (ours,), (theirs,) in zip(rest, whole[7:], strict=True):
        assert torch.equal(ours.input_ids, theirs.input_ids)
        assert ours.document_lengths.tolist() == theirs.document_lengths.tolist()


def test_rows_without_starts_have_no_documents(make_data_dir):
    path, _ = make_data_dir(objective="mlm")
    assert Shard(path / "train_00000.hdf5").attributes.version == 1
    batch = batches(path)[0]
    assert batch.document_lengths is None
    assert "document_lengths" not in batch.model_inputs()


def test_evaluation_knows_the_documents_of_the_rows_that_fill_up_a_batch(directory):
    rows = ShardedRows(directory[0], "validation")
    found = list(evaluation_batches(rows, DataConfig(), BatchShare(4), seed=1))
    assert [batch.rows for batch in found] == [4, 4, 2]
    assert all(batch.document_lengths.sum() == batch.lengths.sum() for batch in found)


@pytest.mark.parametrize("whole_word", [False, True])
def test_masks_do_not_depend_on_the_starts(directory, tmp_path_factory, whole_word):
    path, written = directory
    other = tmp_path_factory.mktemp("stream")
    manifest = Manifest.read(path)
    attributes = dataclasses.replace(manifest.attributes, document_starts=False)
    columns = {name: Shard(path / "train_00000.hdf5").columns[name] for name in written["train"]}
    record = write_shard(other / "train_00000.hdf5", columns, attributes)
    dataclasses.replace(manifest, attributes=attributes, splits={"train": [record]}).write(other)
    (other / "vocab.txt").write_bytes((path / "vocab.txt").read_bytes())
    (path / "train_00001.hdf5").unlink()
    dataclasses.replace(manifest, splits={"train": manifest.splits["train"][:1]}).write(path)
    pairs = zip(batches(path, whole_word=whole_word), batches(other, whole_word=whole_word), strict=True)
    for ours, theirs in pairs:
        assert torch.equal(ours.input_ids, theirs.input_ids)
        assert torch.equal(ours.masked_positions, theirs.masked_positions)


def test_manifest_and_shard_of_version_2_round_trip(directory):
    path, _ = directory
    manifest = Manifest.read(path)
    assert manifest.attributes.document_starts
    assert '"version": 2' in (path / "manifest.json").read_text()
    assert Shard(path / "train_00000.hdf5").attributes == manifest.attributes
    manifest.write(path)
    assert Manifest.read(path) == manifest


@pytest.mark.parametrize("start", [None, SEQ - 1])
def test_impossible_starts_are_named_in_one_line(directory, start):
    path, written = directory
    manifest, length = Manifest.read(path), written["train"]["length"][:23]
    row = int(np.flatnonzero(length < SEQ)[0])
    starts = unpack_starts(written["train"]["document_starts"][:23], SEQ)
    starts[row] = np.arange(SEQ) == (5 if start is None else 0)
    if start is not None:
        starts[row, start] = True
    columns = {name: column[:23] for name, column in written["train"].items()}
    columns["document_starts"] = pack_starts(starts)
    write_shard(path / "train_00000.hdf5", columns, manifest.attributes)
    what = f"damaged, row {row} has no document that starts at position 0, or one that starts in the padding"
    with pytest.raises(ValueError, match=re.escape(what)):
        batches(path, micro=8)
