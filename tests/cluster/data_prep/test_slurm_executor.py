import os
import signal
import subprocess
import sys

import pytest
from made_up_corpus import build, digests, start_build
from made_up_tasks import (
    bad_line_at_one,
    bug_at_one,
    die_at_two,
    new_build_dir,
    no_room_at_one,
    results,
    square,
    square_once_released,
)
from repository import SUPPORT
from runs import wait_until
from slurm_cluster import SlurmCluster, require_slurm

from data_prep.__main__ import main
from data_prep.executors import cluster as cluster_executor
from data_prep.executors import slurm_queue
from data_prep.executors.options import ExecutorOptions, make_executor
from data_prep.executors.slurm import SlurmExecutor
from data_prep.executors.slurm_queue import job_name, stop_orphaned_jobs

LOCAL_FLAGS = ["--shard_rows", "50", "--deduplicate", "exact"]
FLAGS = [*LOCAL_FLAGS, "--executor", "slurm", "--workers", "2"]
_SETTINGS = """
from data_prep.executors import cluster as cluster_executor, slurm_queue
cluster_executor.RANKS_PER_WORKER, slurm_queue.QUEUE_S, data_prep.rows.splitting.GROUP_BYTES = 1, 0.5, 1 << 14
"""


@pytest.fixture(scope="module")
def cluster():
    require_slurm()
    short = "PartitionName=short Nodes=node1 MaxTime=1 State=UP"
    with SlurmCluster(settings=short) as cluster, pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, cluster.environment[name])
        patch.setenv("PYTHONPATH", str(SUPPORT))
        patch.setattr(slurm_queue, "QUEUE_S", 0.5)
        patch.setattr(cluster_executor, "RANKS_PER_WORKER", 1)
        patch.setattr("data_prep.plan.READING_TASK_BYTES", 1 << 14)
        patch.setattr("data_prep.rows.splitting.GROUP_BYTES", 1 << 14)
        yield cluster


@pytest.fixture(scope="module")
def local_digests(corpus, cluster, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("local") / "data"
    assert build(corpus, output_dir, *LOCAL_FLAGS) == 0
    return digests(output_dir)


@pytest.fixture
def executor(cluster):
    return SlurmExecutor(2)


def jobs(cluster, build_dir, form, states="all"):
    command = ["squeue", "--noheader", "--array", f"--states={states}", f"--name={job_name(build_dir)}"]
    return cluster.output(*command, f"--format={form}").split()


def running(cluster, build_dir):
    return jobs(cluster, build_dir, "%i", "pending,running,completing,suspended")


def driver(corpus, output_dir):
    def accept_interrupts():  # they are ignored where tests run in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    options = {"stderr": subprocess.PIPE, "preexec_fn": accept_interrupts}
    return start_build(corpus, output_dir, *FLAGS, more=_SETTINGS, **options)


def test_build_on_two_nodes_gives_the_bytes_of_a_local_build(
    cluster, corpus, local_digests, tmp_path, monkeypatch, capfd
):
    """The path has characters that a shell or Slurm could misinterpret, and the driver is itself a Slurm job."""
    output_dir = tmp_path / "it's %a $(touch x) of\tdata"
    for name, value in {"ARRAY_TASK_ID": "5", "MEM_PER_CPU": "3", "MEM_PER_NODE": "4", "JOB_ID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("RUN_OFFSET", "3")  # read by datatrove
    assert build(corpus, output_dir, *FLAGS) == 0
    assert digests(output_dir) == local_digests
    assert set(jobs(cluster, output_dir / ".build", "%N")) == {"node1", "node2"}
    titles = ("reading:", "exact duplicates:", "vocabulary:", "tokenizing:")
    assert [line for line in capfd.readouterr().err.splitlines() if not line.startswith(titles)] == []


def test_invalid_input_found_on_a_node_is_an_error_of_one_line(cluster, tmp_path, capfd):
    source = tmp_path / "bad.jsonl"
    source.write_text('{"text": "A first document of some length, in order."}\n{"text": \n')
    flags = ["build", "--source", f"jsonl={source}", "--vocab_size", "300", "--executor", "slurm"]
    assert main([*flags, "--output_dir", str(tmp_path / "data")]) == 1
    on_slurm = capfd.readouterr().err.splitlines()
    assert main([*flags[:-2], "--workers", "1", "--output_dir", str(tmp_path / "data")]) == 1
    assert [line for line in on_slurm if line.startswith("error:")] == capfd.readouterr().err.splitlines()[-1:]
    assert on_slurm[-1].startswith(f"error: {source}")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (bad_line_at_one, ValueError, "books/x.txt: line 3:\nnot UTF-8"),
        (no_room_at_one, OSError, r"\[Errno 28\] No space left on device: 'spool/1.txt'"),
        (bug_at_one, RuntimeError, r"task 1: KeyError: 'nonesuch' \(see .*/bug_at_one_000/errors/00001.json\)"),
    ],
)
def test_error_of_a_task_is_raised_and_ends_the_other_jobs(cluster, executor, tmp_path, function, error, message):
    build_dir = new_build_dir(tmp_path / "build")
    with pytest.raises(error, match=message):
        executor.run(function, build_dir, range(400), lambda task: None)
    assert running(cluster, build_dir) == []
    assert len(results(build_dir)) < 200  # The other job has 200 tasks, which take 40 seconds.


def test_task_of_a_cancelled_job_is_retried(cluster, executor, tmp_path):
    build_dir, finished = new_build_dir(tmp_path / "build"), []

    def cancel_second_job(task):
        finished.append(task)
        if len(finished) == 1:
            cluster.output("scancel", running(cluster, build_dir)[-1])
            wait_until(lambda: len(running(cluster, build_dir)) == 1, pause_s=0.05)
            (build_dir / "released").touch()

    executor.run(square_once_released, build_dir, range(12), cancel_second_job)
    assert results(build_dir) == {task: task * task for task in range(12)}
    assert sorted(finished) == list(range(12))
    assert "CANCELLED" in jobs(cluster, build_dir, "%T")
    logs = sorted(path.name for path in (build_dir / "logs").iterdir())
    assert logs == ["square_once_released_000", "square_once_released_001"]


def test_task_that_kills_its_job_three_times_is_an_error(cluster, executor, tmp_path):
    build_dir, finished = new_build_dir(tmp_path / "build"), []
    with pytest.raises(OSError, match=r"^task 2 of die_at_two: the job was lost 3 times \(Slurm job \d+: 1 FAILED\)"):
        executor.run(die_at_two, build_dir, range(6), finished.append)
    assert sorted(finished) == [0, 1, 3, 4, 5]
    assert len(list((build_dir / "logs" / "die_at_two_002" / "slurm").iterdir())) == 1
    assert len(list((build_dir / "logs").iterdir())) == 3


def test_restarted_driver_cancels_its_old_jobs_and_gives_the_same_bytes(
    cluster, corpus, local_digests, tmp_path, capfd
):
    output_dir = tmp_path / "data"
    process = driver(corpus, output_dir)
    wait_until(lambda: len(list((output_dir / ".build" / "done").glob("read_*"))) >= 2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    old = set(jobs(cluster, output_dir / ".build", "%F"))
    assert build(corpus, output_dir, *FLAGS) == 0
    assert "resuming" in capfd.readouterr().err
    assert digests(output_dir) == local_digests
    assert not old & {number.split("_")[0] for number in running(cluster, output_dir / ".build")}


_SLOW_DRIVER = """
import sys
from pathlib import Path
from made_up_tasks import square
from data_prep.executors.slurm import SlurmExecutor
SlurmExecutor(2).run(square, Path(sys.argv[1]), range(400), lambda task: None)
"""


def test_orphaned_jobs_are_cancelled_before_any_executor_resumes_the_build(cluster, tmp_path, monkeypatch):
    build_dir = new_build_dir(tmp_path / "build")
    process = subprocess.Popen([sys.executable, "-c", _SLOW_DRIVER, str(build_dir)])
    wait_until(lambda: len(results(build_dir)) >= 2)
    process.kill()
    process.wait()
    with monkeypatch.context() as without_slurm:
        without_slurm.setenv("PATH", "")
        with pytest.raises(OSError, match="Slurm jobs of a killed build may still be running, and sbatch"):
            stop_orphaned_jobs(build_dir)
    assert running(cluster, build_dir)
    stop_orphaned_jobs(build_dir)
    assert running(cluster, build_dir) == []
    assert 2 <= len(results(build_dir)) < 400
    monkeypatch.setenv("PATH", "")
    stop_orphaned_jobs(build_dir)  # all attempts are closed, so Slurm is not needed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_driver_cancels_its_jobs(cluster, corpus, tmp_path, number):
    output_dir = tmp_path / "data"
    process = driver(corpus, output_dir)
    wait_until(lambda: running(cluster, output_dir / ".build"), pause_s=0.05)
    process.send_signal(number)
    assert process.communicate()[1].splitlines()[-1].startswith("interrupted; the same command resumes")
    assert process.returncode == 130
    assert running(cluster, output_dir / ".build") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--partition=nonesuch"], "invalid partition"),
        (["--nonesuch=1"], "unrecognized option"),
        (["--partition=short", "--time=02:00:00"], r"job \d+ can never start: PartitionTimeLimit"),
    ],
)
def test_jobs_that_slurm_refuses_are_an_error(cluster, tmp_path, arguments, message):
    build_dir = new_build_dir(tmp_path / "build")
    with pytest.raises(OSError, match=message):
        SlurmExecutor(2, arguments).run(square, build_dir, range(2), lambda task: None)
    assert running(cluster, build_dir) == []


def test_flags_reach_sbatch(cluster, tmp_path):
    build_dir = new_build_dir(tmp_path / "build")
    more = ("comment=two words; $HOME", "nice")
    options = ExecutorOptions("slurm", slurm_partition="main", slurm_time="00:07:00", slurm_args=more)
    with make_executor(options) as executor:
        executor.run(square, build_dir, [3], lambda task: None)
    (number,) = jobs(cluster, build_dir, "%A")
    shown = cluster.output("scontrol", "show", "job", number)
    for part in ("TimeLimit=00:07:00", "Partition=main", "Comment=two words; $HOME", "Nice=100"):
        assert part in shown
