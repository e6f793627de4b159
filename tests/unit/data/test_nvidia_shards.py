"""Shards in NVIDIA's format: originals restored, masks kept, unpacking, errors that name the file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

import h5py
import numpy as np
import pytest
import torch
from runs import VOCABULARY
from static_shards import make_static_rows, write_static_corpus, write_static_shard

from bert_pld.config import DataConfig, ModelConfig
from bert_pld.data.loader import check_matches_model, evaluation_batches, training_batches
from bert_pld.data.masking import MaskedTokens, MaskingVocabulary, mask_tokens
from bert_pld.data.nvidia_format import encode, find_shards, predictions_per_row, read_blocks, write_nvidia_shard
from bert_pld.data.nvidia_rows import NvidiaRows, open_rows
from bert_pld.data.order import BatchShare
from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import COLUMNS
from bert_pld.data.unpacked_shards import cache_directory

SHAPES = pytest.mark.parametrize("pairs", [True, False], ids=["pairs", "no_pairs"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(folder, split="train", **shape):
    """Write a corpus into `folder/d`; return the rows of a split and its columns as they were written."""
    columns = write_static_corpus(folder / "d", **shape)[split]
    return open_rows(folder / "d", split), columns


def batches(rows, masking="static", workers=0, rank=0, world=1, first=0, steps=6):
    data, share = DataConfig(masking=masking, workers=workers), BatchShare(8, 2, rank, world)
    first_sample = first * share.global_batch_size
    return training_batches(rows, data, share, seed=2, num_steps=steps, first_sample=first_sample)


def contents(steps):
    tensors = ("row_indices", "input_ids", "masked_positions", "masked_labels")
    return [tuple(getattr(batch, name).tolist() for name in tensors) for step in steps for batch in step]


@SHAPES
def test_original_tokens_and_the_files_masks_are_read(tmp_path, pairs):
    written = write_static_corpus(tmp_path / "d", pairs=pairs, names="nvidia" if pairs else "academic")
    for split, columns in written.items():
        rows = open_rows(tmp_path / "d", split)
        assert isinstance(rows, NvidiaRows)
        indices = np.random.default_rng(0).permutation(len(rows))
        read, masked = rows.read_masked(indices)
        for name in COLUMNS:
            assert (rows.read(indices)[name] == columns[name][indices]).all(), name
            assert (read[name] == columns[name][indices]).all(), name
        assert (masked.input_ids == columns["stored_input_ids"][indices]).all()
        positions = columns["stored_masked_lm_positions"][indices]
        row, column = np.nonzero(positions)
        assert masked.positions.tolist() == (row * 32 + positions[row, column]).tolist()
        assert masked.labels.tolist() == columns["stored_masked_lm_ids"][indices][row, column].tolist()
    assert open_rows(tmp_path / "d", "train").attributes.objective == ("mlm+nsp" if pairs else "mlm")


def test_tokens_of_the_split_are_counted(tmp_path):
    """CUDA graphs expect micro-batches of this many tokens a row."""
    for split, columns in write_static_corpus(tmp_path / "d").items():
        assert open_rows(tmp_path / "d", split).manifest.tokens(split) == columns["length"].sum() > 0


def test_static_masking_uses_the_files_masks_in_every_epoch(tmp_path):
    rows, columns = opened(tmp_path)
    seen = 0
    for step in batches(rows, steps=13):  # 208 rows: more than two epochs of 96
        for batch in step:
            assert (batch.input_ids.numpy() == columns["stored_input_ids"][batch.row_indices]).all()
            assert batch.masked_tokens == (columns["stored_masked_lm_positions"][batch.row_indices] > 0).sum()
            assert (batch.token_type_ids.numpy() == columns["stored_segment_ids"][batch.row_indices]).all()
            labels = columns["stored_next_sentence_labels"][batch.row_indices]
            assert (batch.next_sentence_labels.numpy() == labels).all()
            seen += batch.rows
    assert seen == 208


def test_dynamic_masking_gives_the_masks_of_native_rows(tmp_path):
    rows, columns = opened(tmp_path)
    vocabulary = MaskingVocabulary.read(rows.data_dir, rows.manifest)
    epochs = set()
    for number, (batch, *_) in enumerate(batches(rows, "dynamic", steps=13)):
        epoch = np.full(8, number * 16 // 96)
        if (number * 16 + 8) // 96 == number * 16 // 96:
            ids = columns["input_ids"][batch.row_indices]
            expected = mask_tokens(ids, batch.lengths, batch.row_indices, epoch, vocabulary=vocabulary, seed=2)
            assert (batch.input_ids.numpy() == expected.input_ids).all()
            assert (batch.masked_labels.numpy() == expected.labels).all()
            epochs.add(int(epoch[0]))
    assert epochs == {0, 1, 2}


@pytest.mark.parametrize("masking", ["static", "dynamic"])
def test_batches_do_not_depend_on_workers_resuming_or_ranks(tmp_path, masking):
    rows, _ = opened(tmp_path)
    expected = contents(batches(rows, masking))
    assert contents(batches(rows, masking, workers=2)) == expected
    assert contents(batches(rows, masking, first=4, steps=2)) == expected[8:]
    of_ranks = [list(batches(rows, masking, rank=rank, world=2, steps=3)) for rank in (0, 1)]
    rows_of_two = sorted(row for steps in of_ranks for step in steps for b in step for row in b.input_ids.tolist())
    assert rows_of_two == sorted(row for _, ids, *_ in expected for row in ids)


def test_evaluation_uses_the_files_masks_if_static_and_drawn_masks_if_dynamic(tmp_path):
    rows, columns = opened(tmp_path, "validation")
    settings = (DataConfig(masking=masking) for masking in ("static", "dynamic"))
    static, dynamic = (list(evaluation_batches(rows, data, BatchShare(5), seed=2)) for data in settings)
    ids = torch.cat([b.input_ids[: b.rows] for b in static]).numpy()
    assert (ids == columns["stored_input_ids"]).all()
    assert sum(b.masked_tokens for b in static) == (columns["stored_masked_lm_positions"] > 0).sum()
    assert not (torch.cat([b.input_ids[: b.rows] for b in dynamic]).numpy() == ids).all()


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("books_wiki_en_corpus_training_0", "train"),
        ("Test-7", "validation"),
        ("train_set_eval_3", "validation"),
        ("latest_training_4", "train"),
        ("latest_0", None),
        ("testament_0", None),
        ("contest_strained_0", None),
    ],
)
def test_only_a_whole_word_in_a_name_is_a_split(name, split, tmp_path):
    write_static_shard(tmp_path / f"{name}.hdf5", make_static_rows(np.random.default_rng(1), 2)[0])
    if split is None:
        with pytest.raises(ValueError, match=f"{name}.hdf5: belongs to no split"):
            find_shards(tmp_path)
    else:
        assert list(find_shards(tmp_path)) == [split]


@pytest.mark.parametrize("folders", [("training", "test"), ("train", "eval"), ("Training", "Test")])
def test_shards_in_a_folder_for_each_split_are_read(folders, tmp_path):
    """NVIDIA's present scripts write `<corpus>/training/` and `<corpus>/test/`; MLPerf's files name no split."""
    written = write_static_corpus(tmp_path / "flat")
    corpus = tmp_path / "corpus"
    for folder, word in zip(folders, ("training", "test"), strict=True):
        (corpus / folder).mkdir(parents=True)
        for path in (tmp_path / "flat").glob(f"*{word}*"):
            path.rename(corpus / folder / f"part_{path.stem.split('_')[-1]}_of_3.hdf5")
    (tmp_path / "flat" / "vocab.txt").rename(corpus / "vocab.txt")
    for split, columns in written.items():
        rows = open_rows(corpus, split)
        for name, column in rows.read(np.arange(len(rows))).items():
            np.testing.assert_array_equal(column, columns[name])
    shutil.copy(corpus / folders[0] / "part_0_of_3.hdf5", corpus / "x_training_0.hdf5")
    with pytest.raises(ValueError, match=f"{folders[0]}: there are also shards of this split in .*corpus; keep one"):
        find_shards(corpus)


def test_every_row_must_begin_with_cls(tmp_path):
    """Also a row that is far behind the first ones, and when the shard was unpacked before."""
    write_static_corpus(tmp_path, train=(5000,))
    path = tmp_path / "books_training_0.hdf5"
    with h5py.File(path, "r+") as file:
        file["input_ids"][4900, 0] = 9
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"books_training_0.hdf5: row 4900 begins with id 9, not with .CLS., which"
        ):
            open_rows(tmp_path, "train")


@pytest.mark.parametrize("content", [bytes(5000), b"", b"[]".ljust(5000), b"{}".ljust(5000), b'{"kind": 1'])
def test_damaged_file_in_the_cache_is_an_error_that_says_what_to_do(tmp_path, cache, content):
    opened(tmp_path, train=(9,))
    (unpacked,) = cache.glob("*.rows")
    unpacked.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        open_rows(tmp_path / "d", "train")
    assert str(caught.value) == f"{unpacked}: damaged; remove it, the next run unpacks the shard again"


def test_suffix_of_a_shard_may_have_capitals(tmp_path):
    write_static_corpus(tmp_path, train=(4, 3))
    (tmp_path / "books_training_1.hdf5").rename(tmp_path / "books_training_1.HDF5")
    assert len(open_rows(tmp_path, "train")) == 7


def test_shards_in_a_folder_within_the_folder_of_a_split_are_an_error(tmp_path):
    for name in ("training/1.hdf5", "training/a/0.H5"):
        (tmp_path / name).parent.mkdir(parents=True)
        write_static_shard(tmp_path / name, make_static_rows(np.random.default_rng(1), 2)[0])
    (tmp_path / "training" / "notes").mkdir()
    message = f"^{tmp_path}/training/a: shards in this folder would not be read; move them into {tmp_path}/training$"
    with pytest.raises(ValueError, match=message):
        find_shards(tmp_path)
    (tmp_path / "training" / "a" / "0.H5").unlink()
    assert find_shards(tmp_path) == {"train": [tmp_path / "training" / "1.hdf5"]}


def test_split_and_order_come_from_file_names(tmp_path):
    for name in ("pretraining_test_0", "a_training_10", "a_training_9", "latest_train_1", "train_shard_3"):
        (tmp_path / f"{name}.hdf5").touch()
    (tmp_path / "vocab.txt").touch()
    found = {split: [path.stem for path in paths] for split, paths in find_shards(tmp_path).items()}
    assert found["train"] == ["a_training_9", "a_training_10", "latest_train_1", "train_shard_3"]
    assert found["validation"] == ["pretraining_test_0"]
    write_static_shard(tmp_path / "books_0.hdf5", make_static_rows(np.random.default_rng(1), 2)[0])
    with pytest.raises(
        ValueError, match=r"books_0.hdf5: belongs to no split; .* must contain the word 'train' or 'test'"
    ):
        find_shards(tmp_path)


def test_encoded_rows_round_trip_and_files_are_reproducible(tmp_path):
    _, native = make_static_rows(np.random.default_rng(1), 50)
    special = dict(zip(("pad_id", "unk_id", "cls_id", "sep_id", "mask_id"), range(5), strict=True))
    continues = np.array([entry.startswith("##") for entry in VOCABULARY])
    vocabulary = MaskingVocabulary(len(VOCABULARY), **special, is_continuation=continues)
    places = (np.arange(50), np.zeros(50, np.int64))
    masked = mask_tokens(native["input_ids"], native["length"], *places, vocabulary=vocabulary, seed=0)
    columns = encode(native, masked, has_pairs=True)
    record = write_nvidia_shard(tmp_path / "bert_training_0.hdf5", columns)
    again = write_nvidia_shard(tmp_path / "copy_training_0.hdf5", columns)
    assert (record.sha256, record.rows, record.tokens) == (again.sha256, 50, native["length"].sum())
    with h5py.File(tmp_path / "bert_training_0.hdf5") as file:
        expected = {"input_ids": ("<i4", (50, 32)), "input_mask": ("|i1", (50, 32)), "segment_ids": ("|i1", (50, 32))}
        expected |= {"masked_lm_positions": ("<i4", (50, 6)), "masked_lm_ids": ("<i4", (50, 6))}
        expected |= {"next_sentence_labels": ("|i1", (50,))}
        assert {name: (file[name].dtype.str, file[name].shape) for name in file} == expected
        assert {file[name].compression for name in file} == {"gzip"}
        assert not file.attrs
    ((first, block),) = read_blocks(tmp_path / "bert_training_0.hdf5")
    assert first == 0
    for name, values in native.items():
        assert (block[name] == values).all(), name
    assert block["mask_count"].sum() == len(masked.labels)


def test_more_masks_than_the_format_allows_and_masked_first_tokens_are_refused():
    assert [predictions_per_row(s) for s in (128, 512, 32, 256)] == [20, 80, 6, 40]
    _, native = make_static_rows(np.random.default_rng(1), 3)
    too_many = MaskedTokens(native["input_ids"], np.arange(33, 40), native["input_ids"].reshape(-1)[33:40])
    with pytest.raises(ValueError, match="row 1 has 7 masks; NVIDIA's format allows 6 in rows of 32 tokens"):
        encode(native, too_many, has_pairs=True)
    with pytest.raises(ValueError, match="row 2 is masked at its first token"):
        encode(native, MaskedTokens(native["input_ids"], np.array([64]), np.array([2])), has_pairs=True)


def test_list_of_masks_ends_at_position_zero_except_in_the_first_entry(tmp_path):
    stored, native = make_static_rows(np.random.default_rng(1), 4)
    stored["masked_lm_positions"][0] = [5, 3, 0, 9, 0, 0]  # not ascending; entries after the 0 are ignored
    stored["masked_lm_ids"][0] = [55, 33, 0, 44, 0, 0]
    stored["masked_lm_positions"][1], stored["masked_lm_ids"][1] = 0, 0  # no mask at all
    stored["masked_lm_positions"][2] = [0, 7, 0, 0, 0, 0]
    stored["masked_lm_ids"][2] = [2, 20, 0, 0, 0, 0]
    write_static_shard(tmp_path / "x_training_0.hdf5", stored)
    ((_, block),) = read_blocks(tmp_path / "x_training_0.hdf5")
    assert block["mask_count"].tolist()[:3] == [2, 0, 2]
    assert block["mask_positions"][0].tolist() == [3, 5, 0, 0, 0, 0]
    assert block["input_ids"][0, [3, 5]].tolist() == [33, 55]
    assert block["input_ids"][1].tolist() == stored["input_ids"][1].tolist()
    assert block["input_ids"][2, [0, 7]].tolist() == [2, 20]
    assert (block["input_ids"][3] == native["input_ids"][3]).all()


def test_shard_is_unpacked_once_and_again_after_a_change(tmp_path, cache):
    rows, _ = opened(tmp_path)
    made = {path: path.stat().st_mtime_ns for path in cache.glob("*.rows")}
    assert len(made) == 3
    assert not list(cache.glob("*.partial"))
    before = rows.manifest.fingerprint()
    again = open_rows(tmp_path / "d", "train")
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.rows")} == made
    assert again.manifest.fingerprint() == before
    stored, native = make_static_rows(np.random.default_rng(9), 7)
    write_static_shard(tmp_path / "d" / "books_training_1.hdf5", stored)
    changed = open_rows(tmp_path / "d", "train")
    assert len(list(cache.glob("*.rows"))) == 4
    assert (changed.read(np.arange(41, 48))["input_ids"] == native["input_ids"]).all()
    assert changed.manifest.fingerprint() != before


def test_fingerprint_is_the_same_for_a_copy_and_differs_for_another_order_of_shards(tmp_path):
    write_static_corpus(tmp_path / "d")
    shutil.copytree(tmp_path / "d", tmp_path / "copy")
    first, copied = (open_rows(tmp_path / name, "train").manifest.fingerprint() for name in ("d", "copy"))
    assert first == copied
    (tmp_path / "copy" / "books_training_0.hdf5").rename(tmp_path / "copy" / "books_training_5.hdf5")
    assert open_rows(tmp_path / "copy", "train").manifest.fingerprint() != first


def test_sequence_length_other_than_configured_is_refused(tmp_path):
    rows, _ = opened(tmp_path)
    message = r"d \(books_training_0.hdf5\): sequences of 32 tokens; the run is configured for 16 \(data.seq_length\)"
    with pytest.raises(ValueError, match=message):
        check_matches_model(rows, ModelConfig(vocab_size=64, max_position_embeddings=64), seq_length=16)


def test_emptied_cache_is_filled_again(tmp_path, cache):
    rows, columns = opened(tmp_path)
    for path in cache.glob("*.rows"):
        path.unlink()
    assert (rows.read(np.arange(96))["input_ids"] == columns["input_ids"]).all()


_OPENING = """
import sys
from bert_pld.data.nvidia_rows import open_rows
import numpy as np
rows = open_rows(sys.argv[1], "train")
print(int(rows.read(np.arange(len(rows)))["input_ids"].sum()))
"""


def test_concurrent_processes_share_the_unpacking(tmp_path, cache):
    columns = write_static_corpus(tmp_path / "d", train=(30, 20, 25, 40, 5, 60))["train"]
    command = [sys.executable, "-c", _OPENING, str(tmp_path / "d")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [int(process.communicate(timeout=300)[0]) for process in started] == [columns["input_ids"].sum()] * 3
    assert len(list(cache.glob("*.rows"))) == 6
    assert not list(cache.glob("*.partial"))


def test_partial_files_of_a_killed_process_are_removed(tmp_path, cache):
    opened(tmp_path, train=(9,))
    (whole,) = cache.glob("*.rows")
    whole.rename(cache / f".{whole.stem}.123.partial")
    open_rows(tmp_path / "d", "train")
    assert [path.suffix for path in sorted(cache.iterdir()) if path.suffix != ".lock"] == [".rows"]


def test_full_disk_is_reported_in_one_line_and_leaves_no_files(tmp_path, cache, monkeypatch):
    write_static_corpus(tmp_path / "d")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(ValueError, match=r"cache: no space to unpack shards \(0.00 GB needed, .* set BERT_PLD_CACHE"):
        open_rows(tmp_path / "d", "train")
    monkeypatch.undo()
    monkeypatch.setenv("BERT_PLD_CACHE", str(cache))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ValueError, match=r"no space to unpack shards \(No space left on device\)"):
        open_rows(tmp_path / "d", "train")
    assert not list(cache.glob("*.rows")) + list(cache.glob(".*.partial"))


def test_cache_directory_follows_the_environment(tmp_path, monkeypatch):
    assert cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("BERT_PLD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "bert_pld"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "bert_pld"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-300])


def zero_a_chunk(path):
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        chunk = file["input_ids"].id.get_chunk_info(0)
    content[chunk.byte_offset : chunk.byte_offset + 20] = bytes(20)
    path.write_bytes(content)


def edit(name, change):
    def apply(path):
        with h5py.File(path) as file:
            stored = {key: file[key][:].astype(np.int64) for key in file}
        changed = change(stored.pop(name))
        if changed is not None:
            stored[name] = changed
        path.unlink()
        write_static_shard(path, stored)

    return apply


def set_at(*place, value):
    def change(values):
        values[place] = value
        return values

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "not a readable HDF5 file .*it may be cut short or damaged"),
        (zero_a_chunk, "not a readable HDF5 file .*filter"),
        (lambda path: path.write_text("no HDF5"), "not a readable HDF5 file"),
        (edit("masked_lm_ids", lambda _: None), r"not a shard in NVIDIA's format \(no dataset masked_lm_ids\)"),
        (
            edit("segment_ids", lambda v: v[:, 1:]),
            r"dataset segment_ids is int8 \[7, 31\], expected integers \[7, 32\]",
        ),
        (edit("next_sentence_labels", lambda _: None), "no next sentence labels, but books_test_0.hdf5 has"),
        (edit("next_sentence_labels", set_at(3, value=4)), "row 3: next_sentence_labels is neither 0 nor 1"),
        (edit("input_mask", set_at(2, 4, value=0)), "row 2: input_mask is not ones and then zeros"),
        (edit("input_mask", lambda v: v * 0), "row 0: is empty"),
        (edit("segment_ids", set_at(1, 1, value=1)), "row 1: segment_ids are not zeros"),
        (edit("masked_lm_positions", set_at(1, 1, value=99)), "row 1: masked_lm_positions are outside the tokens"),
        (edit("masked_lm_positions", lambda v: (v > 0) * 4), "row 0: masked_lm_positions has a position twice"),
        (edit("input_ids", set_at(5, 5, value=-1)), "row 5: a token id is negative"),
        (edit("input_ids", set_at(5, 5, value=70000)), "has token id 70000, outside the vocabulary"),
        (edit("input_ids", set_at(5, 5, value=64)), "has token id 64; the vocabulary .* has 64 entries"),
        (edit("input_ids", set_at(0, 0, value=9)), "row 0 begins with id 9, not with .CLS., which is 2"),
        (edit("input_ids", set_at(4, 0, value=9)), "row 4 begins with id 9, not with .CLS., which is 2"),
    ],
)
def test_faulty_shard_is_reported_with_file_and_reason(tmp_path, damage, message):
    write_static_corpus(tmp_path / "d")
    damage(tmp_path / "d" / "books_training_1.hdf5")
    with pytest.raises(ValueError, match=f"^[^ ]*books_training_1.hdf5: .*{message}") as caught:
        open_rows(tmp_path / "d", "train")
    assert "\n" not in str(caught.value)


def test_vocabulary_is_the_directorys_or_the_given_file(tmp_path):
    given = tmp_path / "vocab_given.txt"
    given.write_text("".join(f"{entry}\n" for entry in VOCABULARY))
    write_static_corpus(tmp_path / "d", vocabulary=False)
    with pytest.raises(ValueError, match="but no vocab.txt; add it, or set data.vocab_file"):
        open_rows(tmp_path / "d", "train")
    rows = open_rows(tmp_path / "d", "train", given)
    assert (rows.attributes.vocabulary_size, rows.attributes.casing) == (64, "uncased")
    rows.save_tokenizer(tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes() == given.read_bytes()
    (tmp_path / "d" / "vocab.txt").write_text("".join(f"{entry}\n" for entry in [*VOCABULARY, "more"]))
    with pytest.raises(ValueError, match=r"data.vocab_file: .*vocab_given.txt differs from .*d/vocab.txt"):
        open_rows(tmp_path / "d", "train", given)
    given.write_text("[UNK]\n[PAD]\n[CLS]\n[SEP]\n[MASK]\nword\n")
    (tmp_path / "d" / "vocab.txt").unlink()
    with pytest.raises(ValueError, match=r"\[PAD\] has id 1; must be 0 in NVIDIA's format"):
        open_rows(tmp_path / "d", "train", given)
    given.write_text("[PAD]\n[UNK]\nword\n")
    with pytest.raises(ValueError, match=r"vocab_given.txt: no entry \[CLS\], \[SEP\], \[MASK\] among 3"):
        open_rows(tmp_path / "d", "train", given)


def test_manifest_decides_the_format_of_a_directory(make_data_dir):
    directory, _ = make_data_dir()
    stored, _ = make_static_rows(np.random.default_rng(1), 5)
    write_static_shard(directory / "books_training_0.hdf5", stored)
    rows = open_rows(directory, "train")
    assert type(rows) is ShardedRows
    assert len(rows) == 37
    (directory / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"a native shard in a directory without manifest.json \(an unfinished"):
        open_rows(directory, "train")


def test_cache_of_a_user_without_a_home_is_a_folder_for_temporary_files(tmp_path, monkeypatch):
    """As in a container that runs with a number for a user."""
    for name in ("BERT_PLD_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert cache_directory() == tmp_path / "bert_pld-4000000000"
    (tmp_path / "bert_pld-4000000000").mkdir()
    with pytest.raises(ValueError, match="bert_pld-4000000000: belongs to another user; set BERT_PLD_CACHE"):
        cache_directory()
    monkeypatch.setattr(os, "getuid", lambda: own)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "bert_pld"
    columns = write_static_corpus(tmp_path / "d", train=(3,))["train"]
    np.testing.assert_array_equal(open_rows(tmp_path / "d", "train").read(np.arange(3))["length"], columns["length"])
    assert list((tmp_path / "xdg" / "bert_pld").glob("*.rows"))


def test_split_without_files_is_an_error(tmp_path):
    write_static_corpus(tmp_path / "d", test=())
    assert open_rows(tmp_path / "d", "train").manifest.rows("validation") == 0
    with pytest.raises(ValueError, match="split 'validation' has no rows"):
        open_rows(tmp_path / "d", "validation")
