import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from made_up_corpus import build, card_of, digests, start_build, write_corpus
from runs import wait_until

from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import Manifest
from data_prep.__main__ import main
from data_prep.plan import BuildArguments, BuildPlan


@pytest.fixture(scope="module")
def reference(corpus, tmp_path_factory):
    """A build with one worker, small tasks and several shards."""
    output_dir = tmp_path_factory.mktemp("reference") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.plan.READING_TASK_BYTES", 1 << 14)
        patch.setattr("data_prep.rows.splitting.GROUP_BYTES", 1 << 13)
        assert build(corpus, output_dir, "--shard_rows", "50") == 0
    return output_dir


@pytest.mark.parametrize("workers", ["2", "3"])
def test_bytes_do_not_depend_on_the_number_of_workers(corpus, reference, tmp_path, small_tasks, workers):
    assert build(corpus, tmp_path / "data", "--shard_rows", "50", "--workers", workers) == 0
    assert digests(tmp_path / "data") == digests(reference)
    assert len(list(reference.glob("train_*.hdf5"))) > 5


def test_small_and_large_groups_contain_the_same_tokens(reference, sound_build):
    cards = [card_of(folder) for folder in (reference, sound_build)]
    for name in ("documents", "sentences", "tokens", "vocabulary"):
        assert cards[0][name] == cards[1][name]
    assert cards[0]["shards"]["train"] > cards[1]["shards"]["train"] == 1


def test_another_seed_gives_other_rows(corpus, reference, tmp_path, small_tasks):
    assert build(corpus, tmp_path / "data", "--shard_rows", "50", "--seed", "8") == 0
    assert digests(tmp_path / "data")["train_00000.hdf5"] != digests(reference)["train_00000.hdf5"]


_SLOW_PROGRESS = """
import time, data_prep.pipeline
class Slow(data_prep.pipeline.StageProgress):
    def advance(self, count, documents=0):
        super().advance(count, documents)
        time.sleep(0.1)
data_prep.pipeline.StageProgress = Slow
"""


def is_running(process_id):
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("stage", ["read", "write"])
def test_killed_build_is_resumed_with_the_same_bytes(corpus, reference, tmp_path, small_tasks, stage, capfd):
    output_dir = tmp_path / "data"
    process = start_build(corpus, output_dir, "--shard_rows", "50", more=_SLOW_PROGRESS)
    done = output_dir / ".build" / "done"
    wait_until(lambda: len(list(done.glob(f"{stage}_*.json"))) >= 2 or process.poll() is not None, pause_s=0.005)
    assert process.poll() is None
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert workers
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(map(is_running, workers)), 60, lambda: "a worker outlives its build")
    assert not (output_dir / "manifest.json").exists()
    finished = len(list(done.iterdir()))
    capfd.readouterr()
    assert build(corpus, output_dir, "--shard_rows", "50", "--workers", "2") == 0
    assert "resuming" in capfd.readouterr().err
    assert finished >= 2
    assert digests(output_dir) == digests(reference)


def test_finished_build_is_not_changed(corpus, sound_build, capsys):
    before = digests(sound_build)
    assert build(corpus, sound_build) == 0
    assert "already holds this build" in capsys.readouterr().out
    assert digests(sound_build) == before


def test_directory_of_another_build_is_an_error_and_is_not_changed(corpus, sound_build, capsys):
    before = digests(sound_build)
    assert build(corpus, sound_build, "--seed", "9") == 1
    assert "holds another build" in capsys.readouterr().err
    assert digests(sound_build) == before


def test_unfinished_build_with_other_arguments_is_an_error(corpus, tmp_path, capsys):
    build_dir = tmp_path / "data" / ".build"
    build_dir.mkdir(parents=True)
    BuildPlan(BuildArguments((), None, 300, False, (32,), "mlm", 0.1, 0, 64, "en"), [], []).write(build_dir)
    assert build(corpus, tmp_path / "data") == 1
    assert "holds an unfinished build with other arguments" in capsys.readouterr().err


def test_card_and_manifest_agree_with_the_shards(sound_build):
    card = card_of(sound_build)
    manifest = Manifest.read(sound_build)
    assert card["documents"]["train"] + card["documents"]["validation"] == 160 == sum(manifest.documents.values())
    assert sum(card["documents"]["dropped"].values()) == 0
    random_next = 0
    for split in ("train", "validation"):
        rows = ShardedRows(sound_build, split)
        columns = rows.read(np.arange(len(rows)))
        assert card["rows"][split] == len(rows) == manifest.rows(split)
        assert card["row_tokens"][split] == columns["length"].sum()
        random_next += int(columns["next_sentence_label"].sum())
    assert card["random_next_rows"] == random_next
    assert card["unknown_token_rate"] == 0.0
    assert manifest.attributes.casing == "uncased"
    assert manifest.special_tokens == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert sorted(p.name for p in sound_build.iterdir()) == [
        "data_card.html", "data_card.json", "manifest.json", "tokenizer.json", "train_00000.hdf5",
        "validation_00000.hdf5", "vocab.txt",
    ]  # fmt: skip


def test_mlm_build_packs_every_token(corpus, sound_build, tmp_path):
    flags = ["--objective", "mlm", "--vocab", str(sound_build / "vocab.txt")]
    assert build(corpus, tmp_path / "data", *flags) == 0
    card = card_of(tmp_path / "data")
    documents, rows = card["documents"]["train"] + card["documents"]["validation"], sum(card["rows"].values())
    separators = documents - 2  # one between two documents of a group; each split has one group
    assert sum(card["row_tokens"].values()) == card["tokens"] + separators + 2 * rows
    assert rows == sum(-(-(card["row_tokens"][s] - 2 * card["rows"][s]) // 30) for s in ("train", "validation"))


def test_tokens_of_a_split_come_only_from_its_documents(sound_build):
    """Every sentence contains the number of its document, which is in one split only."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(sound_build / "tokenizer.json"))
    numbers = {}
    for split in ("train", "validation"):
        rows = ShardedRows(sound_build, split)
        columns = rows.read(np.arange(len(rows)))
        text = " ".join(tokenizer.decode(ids.tolist(), skip_special_tokens=False) for ids in columns["input_ids"])
        numbers[split] = text.count(" number ")
    assert numbers["validation"] < 0.3 * numbers["train"]


def test_two_tiny_documents_give_a_row_in_each_split(tmp_path, tiny_vocab):
    corpus = write_corpus(tmp_path / "text", files=1, documents=2)
    assert build(corpus, tmp_path / "data", "--vocab", tiny_vocab) == 0
    manifest = Manifest.read(tmp_path / "data")
    assert manifest.rows("train") > 0
    assert manifest.rows("validation") > 0


def test_special_tokens_in_a_text_are_words(tmp_path, tiny_vocab):
    folder = write_corpus(tmp_path / "text", files=1, documents=8)
    sentence = "The model reads [CLS] and [SEP], fills up with [PAD], and guesses every [MASK] of the line."
    (folder / "about.txt").write_text("\n\n".join([f"{sentence}\n{sentence}"] * 2) + "\n")
    assert build(folder, tmp_path / "data", "--vocab", tiny_vocab) == 0
    assert main(["verify", str(tmp_path / "data")]) == 0
    rows = ShardedRows(tmp_path / "data", "train")
    columns = rows.read(np.arange(len(rows)))
    for ids, length in zip(columns["input_ids"], columns["length"], strict=True):
        assert [(ids[:length] == special).sum() for special in (0, 2, 3, 4)] == [0, 1, 2, 0]


def test_several_sequence_lengths_contain_the_same_documents(corpus, sound_build, tmp_path, capsys):
    flags = ["--seq_length", "64", "32", "--vocab", str(sound_build / "vocab.txt")]
    assert build(corpus, tmp_path / "both", *flags) == 0
    one = [card_of(folder) for folder in (sound_build, tmp_path / "both/seq_32")]
    for name in ("documents", "sentences", "tokens", "rows", "row_tokens", "random_next_rows", "histograms"):
        assert one[0][name] == one[1][name]
    rows = [ShardedRows(folder, "train").read(np.arange(50)) for folder in (sound_build, tmp_path / "both/seq_32")]
    assert np.array_equal(rows[0]["input_ids"], rows[1]["input_ids"])
    manifests = [Manifest.read(tmp_path / "both" / name) for name in ("seq_32", "seq_64")]
    assert [manifest.attributes.seq_length for manifest in manifests] == [32, 64]
    assert manifests[0].documents == manifests[1].documents
    assert manifests[0].rows("train") > 1.5 * manifests[1].rows("train")
    assert main(["verify", str(tmp_path / "both")]) == 0
    out = capsys.readouterr().out
    assert "seq_32: " in out
    assert "seq_64: " in out
    assert build(corpus, tmp_path / "both", *flags) == 0
    assert capsys.readouterr().out.count("already holds this build") == 1


def test_data_card_lists_documents_and_drops_of_each_source(corpus, tmp_path):
    texts = ["Short.", "word " * 30]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert build(corpus, tmp_path / "data", "--source", f"jsonl={tmp_path}/more.jsonl") == 0
    card = card_of(tmp_path / "data")
    kept_and_dropped = [(source["documents"], source["dropped"]) for source in card["sources"]]
    assert kept_and_dropped == [(160, {}), (1, {"shorter than 64 characters": 1})]
    assert all("not recorded" in source["licence"] for source in card["sources"])
    histogram = card["histograms"]
    assert sum(histogram["document_tokens"]) == card["documents"]["train"] + card["documents"]["validation"] == 161
    assert sum(histogram["sentence_tokens"]) == card["sentences"]
    assert sum(histogram["row_fill_sixteenths"]) == sum(card["rows"].values())
    page = (tmp_path / "data" / "data_card.html").read_text()
    assert page.count("<svg") == 3
    for words in ("more.jsonl", "dropped: shorter than 64 characters", f"{card['tokens']:,} tokens"):
        assert words in page
