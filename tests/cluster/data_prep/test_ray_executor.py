import os
import subprocess
import time

import pytest
from made_up_corpus import build, digests
from made_up_tasks import bad_line_at_one, die_once_at_two, new_build_dir, results
from repository import SUPPORT
from runs import wait_until

from data_prep.executors import cluster as cluster_executor
from data_prep.executors.ray_cluster import RayExecutor


def ray_processes():
    """Return the Ray processes that this process has started."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return [args for _, parent, args in rows if int(parent) == os.getpid() and "ray" in args]


@pytest.fixture(scope="module")
def executor():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SUPPORT))
        patch.setattr(cluster_executor, "RANKS_PER_WORKER", 1)
        with RayExecutor(2, "local") as executor:
            yield executor


def test_task_of_a_killed_worker_is_retried(executor, tmp_path):
    build_dir, finished = new_build_dir(tmp_path / "build"), []
    executor.run(die_once_at_two, build_dir, range(6), finished.append)
    assert results(build_dir) == {task: task * task for task in range(6)}
    assert sorted(finished) == list(range(6))
    logs = sorted(path.name for path in (build_dir / "logs").iterdir())
    assert logs == ["die_once_at_two_000", "die_once_at_two_001"]


def test_error_of_a_task_is_raised_and_ends_the_other_tasks(executor, tmp_path):
    build_dir = new_build_dir(tmp_path / "build")
    with pytest.raises(ValueError, match=r"books/x.txt: line 3:\nnot UTF-8"):
        executor.run(bad_line_at_one, build_dir, range(400), lambda task: None)
    before = len(results(build_dir))
    time.sleep(0.5)
    assert len(results(build_dir)) == before < 300  # The other seven ranks have 350, which take at least 35 seconds.


def test_build_gives_the_bytes_of_a_local_build_and_leaves_no_process(corpus, tmp_path, small_tasks, capfd, executor):
    assert ray_processes()
    executor.__exit__(None, None, None)
    flags = ["--shard_rows", "50", "--workers", "2", "--deduplicate", "exact"]
    assert build(corpus, tmp_path / "local", *flags) == 0
    assert build(corpus, tmp_path / "ray", *flags, "--executor", "ray") == 0
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
    titles = ("reading:", "exact duplicates:", "vocabulary:", "tokenizing:")
    assert [line for line in capfd.readouterr().err.splitlines() if not line.startswith(titles)] == []
    wait_until(lambda: not ray_processes(), 60, pause_s=0.1)


def test_missing_ray_cluster_is_an_error_of_one_line(corpus, tmp_path, capfd):
    assert build(corpus, tmp_path / "data", "--executor", "ray", "--ray_address", "auto") == 1
    assert capfd.readouterr().err.startswith("error: --ray_address auto: Could not find any running Ray instance")
