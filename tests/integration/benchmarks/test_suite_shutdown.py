"""However a suite ends, it stops its runs and, where possible, waits for them."""

import signal
import subprocess
import sys
import time

import pytest

from benchmarks.paper.suite import Suite, finished_runs, plan_jobs
from benchmarks.paper.variants import load_scale

# Stands for a run; its last argument is its folder. On SIGTERM it takes a second to save; without it, it trains on.
RUN = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[-1])
def stop(number, frame):
    time.sleep(1)
    (folder / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(folder / "ready").touch()
"""
CLOSES_TERMINAL = "os.kill(os.getppid(), signal.SIGHUP)"
TRAINS_ON = 'time.sleep(60)\n(folder / "trained_on").touch()\n'


def command(*lines):
    return [sys.executable, "-c", RUN + "\n".join(lines)]


@pytest.fixture
def jobs(tmp_path):
    return plan_jobs(load_scale("cpu"), tmp_path, 1, ["post_ln", "pre_ln", "pld_batch"])


@pytest.fixture
def hang_up():
    """Set this process's handler of SIGHUP before a suite runs."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


def test_sighup_stops_the_runs_and_waits_for_them(jobs, hang_up, tmp_path):
    hang_up(lambda number, frame: None)
    with pytest.raises(KeyboardInterrupt):
        Suite(tmp_path, 1, 1, command=command(CLOSES_TERMINAL, TRAINS_ON)).run(jobs[:2])
    assert sorted(path.name for path in jobs[0].run_dir.iterdir()) == ["given.json", "log.txt", "ready", "saved"]
    assert not jobs[1].run_dir.exists()


def test_ignored_sighup_stops_nothing(jobs, hang_up, tmp_path):
    hang_up(signal.SIG_IGN)
    try:
        failures = Suite(tmp_path, 1, 1, command=command(CLOSES_TERMINAL)).run(jobs[:2])
    except KeyboardInterrupt:
        pytest.fail("the suite stopped")
    assert len(failures) == 2  # they trained nothing
    assert all((job.run_dir / "ready").exists() for job in jobs[:2])


def test_run_that_cannot_start_stops_the_others_and_waits_for_them(jobs, tmp_path):
    _, second, third = jobs
    third.run_dir.parent.write_text("a file where a folder should be made")
    # The first ends once the second trains, and makes room for the third.
    ends = """
if folder.parent.name == "post_ln":
    while not (folder.parents[1] / "pre_ln" / "seed_1" / "ready").exists():
        time.sleep(0.05)
    sys.exit()
"""
    with pytest.raises(NotADirectoryError):
        Suite(tmp_path, 2, 1, command=command(ends, TRAINS_ON)).run(jobs)
    assert sorted(path.name for path in second.run_dir.iterdir()) == ["given.json", "log.txt", "ready", "saved"]


def test_signal_during_the_start_of_a_run_reaches_that_run(jobs, tmp_path, monkeypatch):
    class Interrupted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Suite(tmp_path, 2, 1, command=command(TRAINS_ON)).run(jobs)
    assert time.monotonic() - began < 45
    assert not (jobs[0].run_dir / "trained_on").exists()
    assert not jobs[1].run_dir.exists()


def test_run_killed_at_its_start_is_not_finished_and_is_started_again(jobs, tmp_path):
    folder = jobs[0].run_dir
    folder.mkdir(parents=True)
    assert finished_runs(tmp_path) == {}
    last = jobs[0].max_steps
    finish = (
        f"(folder / 'checkpoints' / 'step_{last:08d}').mkdir(parents=True)",
        f"""(folder / 'metrics.jsonl').write_text('{{"step": {last}, "eval_mlm_loss": 5.0}}\\n')""",
    )
    assert Suite(tmp_path, 1, 1, command=command(*finish)).run(jobs[:1]) == []
    assert finished_runs(tmp_path) == {"post_ln": {1: folder}}
