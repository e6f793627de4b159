import dataclasses
import json
import shutil

import numpy as np
import pytest
from data_prep_fixtures import rewrite_shard
from static_shards import write_static_corpus
from tokenizers.pre_tokenizers import BertPreTokenizer, WhitespaceSplit

from bert_pld.data.shards import Manifest, Shard, vocabulary_hash, write_shard
from bert_pld.data.tokenizer import bert_tokenizer
from data_prep.__main__ import main


@pytest.fixture
def copy(sound_build, tmp_path):
    return shutil.copytree(sound_build, tmp_path / "copy")


def verified(folder, capsys):
    status = main(["verify", str(folder)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.splitlines()


def test_sound_directory_prints_three_rows_and_exits_with_0(copy, capsys):
    status, out, err = verified(copy, capsys)
    assert (status, err) == (0, [])
    samples = [line for line in out.splitlines() if line.startswith("row ")]
    assert len(samples) == 3
    assert all("[CLS]" in line and line.endswith("[SEP]") and line.count("[SEP]") == 2 for line in samples)
    assert out.splitlines()[-1].endswith("sound")


def test_flipped_byte_is_found(copy, capsys):
    path = copy / "train_00000.hdf5"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    status, _, err = verified(copy, capsys)
    assert (status, len(err)) == (1, 1)
    assert err[0].startswith(f"error: {path}: damaged (SHA-256")


def test_truncated_missing_and_unlisted_shards_are_all_reported(copy, capsys):
    cut, missing = copy / "train_00000.hdf5", copy / "validation_00000.hdf5"
    shutil.copy(cut, copy / "train_00007.hdf5")
    cut.write_bytes(cut.read_bytes()[:-100])
    missing.unlink()
    status, _, err = verified(copy, capsys)
    assert status == 1
    unlisted, damaged, absent = (line.split("copy/")[1].split(",")[0] for line in err)
    assert unlisted == "train_00007.hdf5: unlisted shard"
    assert damaged == f"train_00000.hdf5: {cut.stat().st_size} bytes"
    assert absent == "validation_00000.hdf5: missing"


def test_wrong_vocabulary_is_found_in_either_file(copy, capsys):
    path = copy / "vocab.txt"
    lines = path.read_text().split("\n")
    lines[20], lines[21] = lines[21], lines[20]
    path.write_text("\n".join(lines))
    status, _, err = verified(copy, capsys)
    fault = f"error: {path}: not the vocabulary of these shards (SHA-256 differs from the manifest's)"
    assert (status, err) == (1, [fault])
    (copy / "tokenizer.json").write_text("{}")
    assert len(verified(copy, capsys)[2]) == 2


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("normalizer", {"lowercase": False}),
        ("normalizer", {"strip_accents": True}),
        ("normalizer", None),
        ("post_processor", None),
        ("model", {"max_input_chars_per_word": 3}),
        ("decoder", {"prefix": "@@"}),
    ],
)
def test_tokenizer_with_other_settings_is_found(copy, capsys, part, change):
    path = copy / "tokenizer.json"
    content = json.loads(path.read_text())
    content[part] = change and {**content[part], **change}
    path.write_text(json.dumps(content))
    fault = f"tokenizes differently than the build did: {part} not as in BERT's uncased tokenizer"
    assert verified(copy, capsys)[::2] == (1, [f"error: {path}: {fault}"])


@pytest.mark.parametrize("text", ['{"model": {"vocab": null}}', "[" * 200_000, "[]"])
def test_tokenizer_that_cannot_be_read_is_an_error_of_one_line(copy, capsys, text):
    (copy / "tokenizer.json").write_text(text)
    status, _, err = verified(copy, capsys)
    assert (status, len(err)) == (1, 1)
    assert err[0].startswith(f"error: {copy}/tokenizer.json: cannot be read (")


def test_tokenizer_that_keeps_accents_or_truncates_is_sound(copy, capsys):
    """A build decides about accents by the text; truncation does not change the ids of short texts."""
    path = copy / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"]["strip_accents"] = False
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(content))
    assert verified(copy, capsys)[::2] == (0, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("input_ids", (3, 5), 300), "row 3: an id is outside the vocabulary of 300 (1 such rows)"),
        (("input_ids", (4, 0), 9), "row 4: does not begin with [CLS]"),
        (("input_ids", (4, 1), 4), "row 4: holds the mask token, but rows are stored without masks (1 such rows)"),
        (("input_ids", (5, 2), 0), "row 5: padding does not begin at position length"),
        (("length", 6, 40), "row 6: length is not between 3 and 32"),
        (("next_sentence_label", 7, -1), "row 7: next_sentence_label is neither 0 nor 1"),
        (("segment_b_start", 8, 31), "row 8: segment_b_start is outside the row"),
    ],
)
def test_invalid_row_is_found(copy, capsys, change, message):
    rewrite_shard(copy / "train_00000.hdf5", *change)
    status, _, err = verified(copy, capsys)
    assert (status, len(err)) == (1, 1)
    assert message in err[0]


def test_shard_of_another_build_is_found(copy, capsys):
    path = copy / "train_00000.hdf5"
    shard, manifest = Shard(path), Manifest.read(copy)
    columns = {name: np.array(column) for name, column in shard.columns.items()}
    manifest.splits["train"][0] = write_shard(path, columns, dataclasses.replace(shard.attributes, seed=8))
    manifest.write(copy)
    _, _, err = verified(copy, capsys)
    assert len(err) == 1
    assert "belongs to another build" in err[0]


def test_directory_without_manifest_is_an_error_of_one_line(tmp_path, capsys):
    status, _, err = verified(tmp_path, capsys)
    assert (status, len(err)) == (1, 1)
    assert "holds no manifest.json" in err[0]


def test_length_without_manifest_is_a_fault_of_a_build_of_several_lengths(copy, tmp_path, capsys):
    copy.rename(tmp_path / "seq_32")
    assert verified(tmp_path, capsys)[0] == 0
    (tmp_path / "seq_64").mkdir()
    status, out, err = verified(tmp_path, capsys)
    assert (status, len(err)) == (1, 1)
    assert f"{tmp_path}/seq_64: holds no manifest.json" in err[0]
    assert "seq_32: " in out


def test_nvidias_shards_without_a_manifest_are_not_called_an_unfinished_build(tmp_path, capsys):
    write_static_corpus(tmp_path, train=(3,))
    status, _, err = verified(tmp_path, capsys)
    assert (status, len(err)) == (1, 1)
    assert "has shards in NVIDIA's format, but no manifest.json with their checksums" in err[0]


def test_thai_tokenizer_of_an_older_release_is_sound(copy, capsys):
    """It has BERT's own pre-tokenizer, which does not cut long words."""
    entries = (copy / "vocab.txt").read_text().splitlines()
    entries[-10:] = [f"{chr(0x0E01 + number)}ก" for number in range(10)]
    (copy / "vocab.txt").write_text("".join(f"{entry}\n" for entry in entries))
    manifest = Manifest.read(copy)
    attributes = dataclasses.replace(manifest.attributes, vocabulary_hash=vocabulary_hash(entries))
    for records in manifest.splits.values():
        for number, record in enumerate(records):
            columns = {name: np.array(column) for name, column in Shard(copy / record.file).columns.items()}
            records[number] = write_shard(copy / record.file, columns, attributes)
    dataclasses.replace(manifest, attributes=attributes).write(copy)
    tokenizer = bert_tokenizer(entries, cased=False)
    assert json.loads(tokenizer.to_str())["pre_tokenizer"]["type"] == "Sequence"
    for splitter in (tokenizer.pre_tokenizer, BertPreTokenizer(), WhitespaceSplit()):
        tokenizer.pre_tokenizer = splitter
        tokenizer.save(str(copy / "tokenizer.json"))
        faults = verified(copy, capsys)[2]
        assert len(faults) == isinstance(splitter, WhitespaceSplit)
