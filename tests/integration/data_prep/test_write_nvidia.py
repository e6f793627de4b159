"""Builds in NVIDIA's format have the rows of a native build and the masks of dynamic masking."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest
from data_prep_fixtures import rewrite_shard
from made_up_corpus import build, card_of, digests

from bert_pld.data.masking import MaskingVocabulary, mask_tokens
from bert_pld.data.nvidia_rows import open_rows
from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import COLUMNS, Manifest
from data_prep.verify import verify

DUPLICATES = 3
SHARDS = ("--shard_rows", "300", "--deduplicate", "none")
NVIDIA = ("--format", "nvidia", "--dupe_factor", str(DUPLICATES))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PLD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", autouse=True)
def several_groups():
    """Make groups of two shards each, so that row indices run over groups and shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.plan.READING_TASK_BYTES", 1 << 15)
        patch.setattr("data_prep.rows.splitting.GROUP_BYTES", 1 << 15)
        yield


def build_pair(corpus, folder, *flags):
    """Build the same text in both formats."""
    assert build(corpus, folder / "native", *SHARDS, *flags) == 0
    assert build(corpus, folder / "nvidia", *SHARDS, *NVIDIA, *flags) == 0
    return folder


@pytest.fixture(scope="module")
def pair(corpus, tmp_path_factory):
    return build_pair(corpus, tmp_path_factory.mktemp("pair"))


def assert_same_rows_and_masks(folder):
    native = ShardedRows(folder / "native", "train")
    nvidia = open_rows(folder / "nvidia", "train")
    count = len(native)
    assert len(nvidia) == DUPLICATES * count
    assert len(nvidia.records) == DUPLICATES * len(native.records) > 4 * DUPLICATES
    vocabulary = MaskingVocabulary.read(folder / "native", native.manifest)
    originals = native.read(np.arange(count))
    for duplicate in range(DUPLICATES):
        columns, masked = nvidia.read_masked(np.arange(count) + duplicate * count)
        for name in COLUMNS:
            assert (columns[name] == originals[name]).all(), name
        expected = mask_tokens(
            originals["input_ids"], originals["length"], np.arange(count), np.full(count, duplicate),
            vocabulary=vocabulary, seed=7,
        )  # fmt: skip
        assert (masked.input_ids == expected.input_ids).all()
        assert (masked.positions == expected.positions).all()
        assert (masked.labels == expected.labels).all()
    held_out = ShardedRows(folder / "native", "validation")
    assert len(open_rows(folder / "nvidia", "validation")) == len(held_out) > 0
    return native, nvidia


def test_nvidia_rows_restore_native_rows_with_the_masks_of_the_first_epochs(pair):
    native, nvidia = assert_same_rows_and_masks(pair)
    assert nvidia.manifest.format == "nvidia"
    assert nvidia.manifest.tokens("train") == DUPLICATES * native.manifest.tokens("train")
    assert nvidia.attributes == native.attributes


def test_packed_rows_have_no_next_sentence_labels(corpus, tmp_path):
    build_pair(corpus, tmp_path, "--objective", "mlm")
    _, nvidia = assert_same_rows_and_masks(tmp_path)
    with h5py.File(tmp_path / "nvidia" / nvidia.records[0].file) as file:
        assert "next_sentence_labels" not in file
        assert file["masked_lm_ids"].shape == (300, 6)
    assert verify(tmp_path / "nvidia") == []


def test_file_names_select_the_split_as_other_projects_expect(pair):
    names = [path.name for path in (pair / "nvidia").glob("*.hdf5")]
    records = Manifest.read(pair / "nvidia").splits
    for word, split in (("training", "train"), ("train", "train"), ("test", "validation")):
        assert sorted(name for name in names if word in name) == sorted(record.file for record in records[split])


def test_rows_are_the_same_without_the_manifest(pair, tmp_path):
    bare = shutil.copytree(pair / "nvidia", tmp_path / "bare")
    (bare / "manifest.json").unlink()
    for split in ("train", "validation"):
        ours, theirs = open_rows(pair / "nvidia", split), open_rows(bare, split)
        indices = np.arange(len(ours))
        assert (ours.read_masked(indices)[1].input_ids == theirs.read_masked(indices)[1].input_ids).all()
        assert theirs.attributes.vocabulary_hash == ours.attributes.vocabulary_hash


def test_bytes_do_not_depend_on_workers_or_interruptions(corpus, pair, tmp_path, monkeypatch):
    flags = (*SHARDS, *NVIDIA, "--workers", "2")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.pipeline.write_card", interrupted)  # after the shards have their final names
        assert build(corpus, tmp_path / "data", *flags) == 130
    assert (tmp_path / "data" / ".build").is_dir()
    assert build(corpus, tmp_path / "data", *flags) == 0
    assert digests(tmp_path / "data") == digests(pair / "nvidia")


def test_verify_accepts_a_sound_build_and_prints_unmasked_rows(pair, capsys):
    assert verify(pair / "nvidia") == []
    out = capsys.readouterr().out
    assert "sound" in out
    assert "[MASK]" not in out
    card = card_of(pair / "nvidia")
    assert (card["arguments"]["format"], card["arguments"]["dupe_factor"]) == ("nvidia", DUPLICATES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("masked_lm_ids", (4, 0), 2), "row 4: a special token is masked"),
        (("masked_lm_ids", (4, 0), 300), "row 4: an id is outside the vocabulary of 300"),
        (("masked_lm_positions", 4, 0), "row 4: "),
        (("input_ids", (3, 0), 77), "row 3: does not begin with [CLS]"),
        (("input_mask", (2, 5), 0), "row 2: input_mask is not ones and then zeros"),
    ],
)
def test_verify_names_the_invalid_row(pair, tmp_path, change, message):
    path = shutil.copytree(pair / "nvidia", tmp_path / "data") / "bert_training_1.hdf5"
    rewrite_shard(path, *change)
    (fault,) = verify(tmp_path / "data")
    assert fault.startswith(f"{path}: ")
    assert message in fault


def test_verify_finds_damaged_missing_and_unlisted_shards(pair, tmp_path):
    data = shutil.copytree(pair / "nvidia", tmp_path / "data")
    content = bytearray((data / "bert_training_0.hdf5").read_bytes())
    content[len(content) // 2] ^= 1
    (data / "bert_training_0.hdf5").write_bytes(content)
    (data / "bert_training_1.hdf5").unlink()
    shutil.copy(data / "bert_test_0.hdf5", data / "bert_training_999.hdf5")
    faults = " ".join(verify(data))
    assert "bert_training_0.hdf5: damaged (SHA-256 differs" in faults
    assert "bert_training_1.hdf5: missing" in faults
    assert "bert_training_999.hdf5: unlisted shard" in faults


def test_vocabulary_with_nonzero_padding_id_is_an_error(corpus, tmp_path, capsys):
    entries = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "word"]
    (tmp_path / "vocab.txt").write_text("".join(f"{entry}\n" for entry in entries))
    flags = ("--vocab", str(tmp_path / "vocab.txt"), "--format", "nvidia")
    assert build(corpus, tmp_path / "data", *flags) == 1
    assert "the id of [PAD] is 1; --format nvidia requires 0" in capsys.readouterr().err
