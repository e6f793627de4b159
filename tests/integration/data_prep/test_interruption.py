"""Builds that are killed at random moments, and builds on a disk that becomes full.

`BERT_PLD_KILLS` sets the number of kills (default 8).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from made_up_corpus import WORDS, build, digests, start_build, write_corpus

from data_prep.__main__ import main

KILLS = int(os.environ.get("BERT_PLD_KILLS", "8"))
FLAGS = ("--seq_length", "32", "64", "--shard_rows", "50")


def start(corpus, output_dir):
    return start_build(corpus, output_dir, *FLAGS, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_build_killed_at_random_moments_ends_with_the_same_bytes(corpus, tmp_path):
    output_dir = tmp_path / "data"
    began = time.monotonic()
    assert start(corpus, output_dir).wait() == 0
    whole_s = time.monotonic() - began
    reference = digests(output_dir)
    assert len(reference) > 20
    shutil.rmtree(output_dir)
    draw = random.Random(11)
    kills = finished = resumed = 0
    while kills < KILLS or not finished:
        process = start(corpus, output_dir)
        try:
            # Late moments are rare, so kills are spread over the whole build.
            process.communicate(timeout=draw.uniform(0.2, 1.0) * whole_s if kills < KILLS else 300)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            error = process.communicate()[1]
            kills += 1
            if not error:  # It had not begun: the machine has become slower.
                whole_s *= 1.1
            resumed += "resuming" in error
            # The manifest is written last: if it exists, all other files are complete.
            if all((output_dir / name / "manifest.json").is_file() for name in ("seq_32", "seq_64")):
                assert {n: d for n, d in digests(output_dir).items() if ".build" not in n} == reference
        else:
            assert process.returncode == 0
            assert digests(output_dir) == reference
            finished += 1
            shutil.rmtree(output_dir)
    assert kills == KILLS
    assert resumed >= KILLS // 6


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_is_an_error_of_one_line_and_the_build_is_resumed_with_space(tmp_path, small_disk, capfd):
    corpus = write_corpus(tmp_path / "text", files=4, documents=100)
    output_dir = small_disk / "data"
    assert build(corpus, output_dir, *FLAGS) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(("reading", "vocab", "tok"))]
    errors = [line for line in errors if "duplicates:" not in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: no space left to write")
    assert "resume the build with the same command" in errors[0]
    assert not list(output_dir.glob("seq_*/manifest.json"))
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    assert build(corpus, output_dir, *FLAGS) == 0
    assert build(corpus, tmp_path / "elsewhere", *FLAGS) == 0
    assert digests(output_dir) == digests(tmp_path / "elsewhere")


def jsonl(path, numbers, damaged=False):
    """Write made-up documents; each file has its own size, and a damaged file has a line that is not JSON."""
    draw = random.Random(path.name)
    lines = [json.dumps({"text": f"{path.stem} {n} " + " ".join(draw.choices(WORDS, k=60))}) for n in range(numbers)]
    path.write_text("\n".join([*lines, "{oops" if damaged else ""]))


def test_damaged_file_invalidates_only_its_own_reading_task(tmp_path, small_tasks, capfd):
    folder, output_dir = tmp_path / "text", tmp_path / "data"
    folder.mkdir()
    for number in range(6):
        jsonl(folder / f"{number}.jsonl", 20 + number, damaged=number == 4)
    flags = ["build", "--source", f"jsonl={folder}", "--seq_length", "32", "--validation_fraction", "0.1"]
    flags += ["--vocab_size", "300", "--workers", "1", "--output_dir"]
    assert main([*flags, str(output_dir)]) == 1
    assert "4.jsonl:25: not JSON" in capfd.readouterr().err
    done = {path.name for path in (output_dir / ".build" / "done").iterdir()}
    assert {f"read_{number:05d}.json" for number in range(3)} <= done
    jsonl(folder / "4.jsonl", 24)
    assert main([*flags, str(output_dir)]) == 0
    error = capfd.readouterr().err
    assert f"{len(done)} of 6 reading tasks reused from an unfinished build" in error
    assert f"reading: resuming, {len(done)} of 6 tasks are done" in error
    assert main([*flags, str(tmp_path / "anew")]) == 0
    assert digests(output_dir) == digests(tmp_path / "anew")


def test_corrected_vocabulary_size_reuses_reading_tasks_except_of_changed_files(tmp_path, corpus, capfd):
    folder, output_dir = tmp_path / "text", tmp_path / "data"
    shutil.copytree(corpus, folder)
    assert build(folder, output_dir, "--vocab_size", "90000") == 1
    assert "--vocab_size 90000: the text gives only" in capfd.readouterr().err
    assert build(folder, output_dir, "--deduplicate", "none") == 1
    assert "holds an unfinished build with other arguments" in capfd.readouterr().err
    part = folder / "part_0.txt"
    part.write_text(part.read_text().replace("number 3.", "number 8."))
    os.utime(part, (time.time() + 10, time.time() + 10))
    assert build(folder, output_dir) == 1
    assert "holds an unfinished build with other arguments" in capfd.readouterr().err  # a single task reads all files
    os.utime(part, (1, 1))
    assert build(folder, output_dir) == 0
    assert "1 of 1 reading tasks reused" in capfd.readouterr().err
