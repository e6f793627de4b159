"""The processes of a build on this machine."""

import time

import pytest

from data_prep.executors.local import LocalExecutor


def fail_or_write(folder, task):
    """Fail in task 0; all others write a file after 0.3 s."""
    if task == 0:
        raise ValueError("task 0: damaged")
    time.sleep(0.3)
    (folder / f"{task}.txt").write_text("done")


def test_tasks_that_have_begun_are_finished_before_an_error_is_raised(tmp_path):
    with LocalExecutor(2) as executor:
        with pytest.raises(ValueError, match="task 0: damaged"):
            executor.run(fail_or_write, tmp_path, range(40), lambda task: None)
        written = sorted(path.name for path in tmp_path.iterdir())
        assert "1.txt" in written
        time.sleep(0.5)
        assert sorted(path.name for path in tmp_path.iterdir()) == written
    assert len(written) < 8
