"""scripts/quickstart.sh leaves no training behind when one of the two fails or the script is stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

import pytest
from repository import REPOSITORY

# Stands for python: one processor core or two, no GPU, and success for all else.
PYTHON = """#!/bin/bash
case "$*" in
*device_count*) echo 0 ;;
*sched_getaffinity*) echo "$CORES" ;;
*socket*) echo 29500 ;;
esac
"""
# Stands for deepspeed: notes that it began, and SIGTERM when it gets it; then it takes a while to end. The one that
# fails does so once the other one has begun.
DEEPSPEED = """#!/bin/bash
name=dense
case "$*" in */pld*) name=pld ;; esac
if [ "$name" = "${FAILING:-}" ]; then
    for _ in $(seq 1 1000); do
        ! grep -qs began "$NOTES"/* || exit 3
        sleep 0.05
    done
fi
[ -n "${SECONDS_OF_A_RUN:-}" ] || trap "sleep 0.2; echo saved; echo stopped >>$NOTES/$name; exit 0" TERM
echo began >>"$NOTES/$name"
for _ in $(seq 1 "${SECONDS_OF_A_RUN:-600}"); do sleep 0.1; done
echo ended >>"$NOTES/$name"
"""


@pytest.fixture
def quickstart(tmp_path):
    """Function that starts the script with the stand-ins above, and the folder of their notes."""
    for name in ("bin", "notes", "scripts"):
        (tmp_path / name).mkdir()
    shutil.copy(REPOSITORY / "scripts" / "quickstart.sh", tmp_path / "scripts")
    (tmp_path / "scripts" / "environment.sh").touch()
    for name, text in (("python", PYTHON), ("deepspeed", DEEPSPEED)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def start(**environment: str) -> subprocess.Popen[str]:
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        given = {**os.environ, "PATH": path, "NOTES": str(tmp_path / "notes"), "CORES": "2", **environment}
        command = ["bash", str(tmp_path / "scripts" / "quickstart.sh"), str(tmp_path / "out")]
        return subprocess.Popen(
            command,
            env=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A shell cannot trap SIGINT if it was ignored when the shell began, as where the tests run in background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start, tmp_path / "notes"


def notes_of(folder):
    return {path.name: path.read_text().split() for path in folder.iterdir()}


def wait_for(folder, number):
    deadline = time.monotonic() + 120
    while sum("began" in notes for notes in notes_of(folder).values()) < number:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("failing", "other"), [("pld", "dense"), ("dense", "pld")])
def test_failed_training_ends_the_other_one_and_the_script(quickstart, failing, other):
    start, notes = quickstart
    script = start(FAILING=failing)
    printed, _ = script.communicate(timeout=120)
    assert script.returncode == 3, printed
    assert notes_of(notes) == {other: ["began", "stopped"]}
    # What a run says while it ends is still printed.
    assert f"{other} | saved" in printed
    assert "export to Hugging Face" not in printed


@pytest.mark.parametrize(("cores", "begun"), [("2", ["dense", "pld"]), ("1", ["pld"])])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_script_ends_what_it_started(quickstart, number, cores, begun):
    start, notes = quickstart
    script = start(CORES=cores)
    wait_for(notes, len(begun))
    # A terminal sends SIGINT to its foreground group, which is that of the script.
    (os.killpg if number == signal.SIGINT else os.kill)(script.pid, number)
    printed, _ = script.communicate(timeout=120)
    assert script.returncode in (-number, 128 + number), printed
    assert notes_of(notes) == {name: ["began", "stopped"] for name in begun}


@pytest.mark.parametrize("cores", ["1", "2"])
def test_complete_script_succeeds(quickstart, cores):
    start, notes = quickstart
    script = start(CORES=cores, SECONDS_OF_A_RUN="3")
    printed, _ = script.communicate(timeout=120)
    assert script.returncode == 0, printed
    assert notes_of(notes) == {name: ["began", "ended"] for name in ("dense", "pld")}
    assert "done; plot:" in printed
