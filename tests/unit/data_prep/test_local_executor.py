"""The processes of a build on this machine."""

import multiprocessing
import time

import pytest

from data_prep.executors import local
from data_prep.executors.local import LocalExecutor


def fail_or_write(folder, task):
    """Fail in task 0; all others write a file after 0.3 s."""
    if task == 0:
        raise ValueError("task 0: damaged")
    time.sleep(0.3)
    (folder / f"{task}.txt").write_text("done")


def end_or_read_on(folder, task):
    """End in task 0 once the others have begun; all others read for a minute, then write a file."""
    if task == 0:
        while not (folder / "1.begun").exists():
            time.sleep(0.01)
        return
    (folder / f"{task}.begun").touch()
    time.sleep(60)
    (folder / f"{task}.txt").write_text("done")


def test_tasks_that_take_long_are_ended_after_an_interrupt(tmp_path, monkeypatch):
    """As after an error: another task may read a large compressed file for hours."""
    monkeypatch.setattr(local, "GRACE_S", 0.1)

    def interrupt(task):
        raise KeyboardInterrupt

    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    other.start()
    began = time.monotonic()
    with LocalExecutor(2) as executor, pytest.raises(KeyboardInterrupt):
        executor.run(end_or_read_on, tmp_path, range(4), interrupt)
    assert time.monotonic() - began < 30
    assert multiprocessing.active_children() == [other]
    other.kill()
    other.join()
    assert not list(tmp_path.glob("*.txt"))


def test_tasks_that_have_begun_are_finished_before_an_error_is_raised(tmp_path):
    with LocalExecutor(2) as executor:
        with pytest.raises(ValueError, match="task 0: damaged"):
            executor.run(fail_or_write, tmp_path, range(40), lambda task: None)
        written = sorted(path.name for path in tmp_path.iterdir())
        assert "1.txt" in written
        time.sleep(0.5)
        assert sorted(path.name for path in tmp_path.iterdir()) == written
    assert len(written) < 8
