import random
import sys

import h5py
import numpy as np
import pytest
from benchmark_command import check_error, measure

from benchmarks.data import command as data
from benchmarks.data.contenders import read_documents
from benchmarks.data.measured_process import run_measured
from benchmarks.data.python_static import write_static_shard
from bert_pld.data.nvidia_format import read_blocks, read_header

SYLLABLES = ("ri", "sto", "mor", "har", "let", "win", "gar", "cap", "sil", "bri", "vil", "mu")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    draw = random.Random(0)

    def document(number):
        words = ["".join(draw.choices(SYLLABLES, k=3)) for _ in range(24)]
        return f'The {" ".join(words)} number {number}.\n"Who built it?" asked Anna. "Nobody," said Mr. Reed.'

    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n\n".join(map(document, range(300))) + "\n", encoding="utf-8")
    return f"text={path}"


@pytest.mark.thorough
def test_build_has_as_many_tokens_as_bare_tokenization_and_ratios_follow_from_the_times(source, tmp_path, capsys):
    options = ["--workers=1", "--rounds=2", "--vocab_size=300", "--seq_length=32", "--python_bytes=2000"]
    result = measure(tmp_path, "data", f"--source={source}", *options)
    assert data.report(result) in capsys.readouterr().out
    contenders = result["contenders"]
    of_all = ["encode_batch 1", "encode_batch_fast 1", "build 1", "build + verify 1", "build --format nvidia 1"]
    assert list(contenders) == [*of_all, "pure_python", "python_static"]
    assert contenders["python_static"]["tokens"] == contenders["pure_python"]["tokens"]
    assert contenders["encode_batch 1"]["tokens"] == contenders["build 1"]["tokens"] == result["tokens"] > 300 * 20
    assert result["documents"] == 300
    assert result["vocabulary_entries"] == 300
    assert 2000 <= contenders["pure_python"]["text_bytes"] < 3000
    for entry in contenders.values():
        assert len(entry["seconds"]) == len(entry["processor_seconds"]) == 2
        assert entry["tokens_per_s"] == pytest.approx(2 * entry["tokens"] / sum(entry["seconds"]))
    for key in ("peak_process_bytes", "peak_total_bytes"):
        assert 20e6 < contenders["build 1"][key] < 2e9
    theirs, mine = contenders["encode_batch 1"], contenders["build 1"]
    found = [b / a for a, b in zip(mine["seconds"], theirs["seconds"], strict=True)]
    ratio = result["ratios"]["build 1 / encode_batch 1"]
    assert (ratio["least"], ratio["most"]) == pytest.approx((min(found), max(found)))
    whole, part = contenders["build + verify 1"]["seconds"], contenders["build 1"]["seconds"]
    assert all(a > b for a, b in zip(whole, part, strict=True))
    per_token = [contenders[name]["seconds"][0] / contenders[name]["tokens"] for name in ("build 1", "pure_python")]
    turns = result["ratios"]["build 1 / pure_python"]
    assert turns["least"] <= per_token[1] / per_token[0] * (1 + 1e-9)
    assert turns["most"] >= per_token[1] / per_token[0] * (1 - 1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers=4096"], "--workers 4096: must be at most"),
        (["--workers=0"], "--workers 0: must be positive integers"),
        (["--rounds=0"], "--rounds 0: must be at least 1"),
        (["--vocab=/nowhere/vocab.txt", "--workers=1"], "--vocab /nowhere/vocab.txt: no such file"),
        (["--source=novel=/nowhere", "--workers=1"], "unknown kind 'novel'"),
    ],
)
def test_user_errors_are_one_line(options, message, capsys):
    check_error(capsys, message, "data", *options)


def test_memory_of_child_processes_is_counted():
    child = "import time; block = bytearray(b'x') * 150_000_000; time.sleep(0.5)"
    parent = f"import subprocess, sys; print('done'); subprocess.run([sys.executable, '-c', {child!r}])"
    seen = run_measured([sys.executable, "-c", parent])
    assert 150e6 < seen.peak_process_bytes < 250e6
    assert seen.peak_process_bytes < seen.peak_total_bytes < 350e6
    assert seen.output == "done\n"
    assert seen.seconds > 0.5
    assert 0 < seen.processor_seconds < seen.seconds + 5
    with pytest.raises(ValueError, match="too bad"):
        run_measured([sys.executable, "-c", "raise SystemExit('error: too bad')"])


def test_documents_are_read_up_to_a_size(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("One.\nTwo.\n\nThree.\n\nFour.\n\n")
    assert list(read_documents(path, 0)) == [["One.", "Two."], ["Three."], ["Four."]]
    assert list(read_documents(path, 12)) == [["One.", "Two."], ["Three."]]


def test_python_static_writes_rows_that_the_loader_reads(tmp_path):
    entries = {name: index for index, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SYLLABLES])}
    draw = random.Random(1)
    documents = [[" ".join(draw.choices(SYLLABLES, k=7)) for _ in range(9)] for _ in range(20)]
    path = tmp_path / "training_0.hdf5"
    assert write_static_shard(documents, str.split, entries, path, seq_length=32) == 20 * 9 * 7
    blocks = [rows for _, rows in read_blocks(path)]
    rows = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    assert read_header(path).shape == (32, 6, True)
    assert 0.3 < rows["next_sentence_label"].mean() < 0.7
    # Five passes over all the text, of which some is cut, and what random segments bring.
    assert 1.0 < rows["length"].sum() / (5 * 20 * 9 * 7) < 1.8
    with h5py.File(path) as file:
        masked = (file["masked_lm_positions"][:] > 0).sum()
        share_masked = (file["input_ids"][:] == entries["[MASK]"]).sum() / masked
        assert masked / file["input_mask"][:].sum() == pytest.approx(0.15, abs=0.02)
    assert share_masked == pytest.approx(0.8, abs=0.03)
