"""Builds that are killed at any moment, and builds on a disk that fills up."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_up_corpus import write_corpus

from data_prep.__main__ import main

KILLS = 20
_BUILD = """
import sys
import data_prep.plan, data_prep.splitting
from data_prep.__main__ import main
data_prep.plan.READING_TASK_BYTES, data_prep.splitting.GROUP_BYTES = 1 << 14, 1 << 13
sys.exit(main(sys.argv[1:]))
"""


def flags_of(corpus, output_dir):
    flags = ["build", "--source", f"text={corpus}", "--output_dir", str(output_dir), "--seq_length", "32", "64"]
    return [*flags, "--vocab_size", "300", "--validation_fraction", "0.1", "--shard_rows", "50", "--workers", "2"]


def start(corpus, output_dir):
    command = [sys.executable, "-c", _BUILD, *flags_of(corpus, output_dir)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def digests(folder: Path):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_killed_at_twenty_random_moments_a_build_ends_in_the_same_bytes(corpus, tmp_path):
    output_dir = tmp_path / "data"
    began = time.monotonic()
    assert start(corpus, output_dir).wait() == 0
    whole_s = time.monotonic() - began
    reference = digests(output_dir)
    assert len(reference) > 20
    shutil.rmtree(output_dir)
    draw = random.Random(11)
    kills = finished = went_on = 0
    while kills < KILLS or not finished:
        process = start(corpus, output_dir)
        try:
            # The latest moments are the rarest: aim there too.
            process.communicate(timeout=draw.uniform(0.2, 1.0) * whole_s if kills < KILLS else 60)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            error = process.communicate()[1]
            kills += 1
            went_on += "going on" in error
            # Nothing half-written is taken for whole: a manifest is there only when everything else is.
            if all((output_dir / name / "manifest.json").is_file() for name in ("seq_32", "seq_64")):
                assert {n: d for n, d in digests(output_dir).items() if ".build" not in n} == reference
        else:
            assert process.returncode == 0
            assert digests(output_dir) == reference
            finished += 1
            shutil.rmtree(output_dir)
    assert kills == KILLS
    assert went_on >= 3


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


def test_a_disk_that_fills_up_is_one_line_and_with_room_the_build_goes_on(tmp_path, small_disk, capfd):
    corpus = write_corpus(tmp_path / "text", files=4, documents=100)
    output_dir = small_disk / "data"
    assert main(flags_of(corpus, output_dir)) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(("reading", "vocab", "tok"))]
    errors = [line for line in errors if "duplicates:" not in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: no room to write")
    assert "the same command again" in errors[0]
    assert not list(output_dir.glob("seq_*/manifest.json"))
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    assert main(flags_of(corpus, output_dir)) == 0
    assert main(flags_of(corpus, tmp_path / "elsewhere")) == 0
    assert digests(output_dir) == digests(tmp_path / "elsewhere")
