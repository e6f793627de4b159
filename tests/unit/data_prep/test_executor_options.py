import argparse
import json

import pytest

from data_prep.executors.attempt import Attempt, NotesReader, RunTasks, open_attempts
from data_prep.executors.options import ExecutorOptions, add_executor_flags


def options(*flags):
    parser = argparse.ArgumentParser()
    add_executor_flags(parser)
    return ExecutorOptions.from_flags(parser.parse_args(flags))


def test_flags_become_options():
    flags = "--executor slurm --workers 64 --slurm_partition cpu,long --slurm_time 1-12:00:00 --slurm_memory_gb 4"
    assert options(*flags.split(), "--slurm_args", "account=a b", "exclusive") == ExecutorOptions(
        "slurm", 64, "cpu,long", "1-12:00:00", 4.0, ("account=a b", "exclusive")
    )
    assert options("--executor", "ray", "--ray_address", "[::1]:6379").ray_address == "[::1]:6379"
    assert options().executor == "local"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--executor", "condor"], "--executor condor: not available; allowed: local, slurm, ray"),
        (["--workers", "0"], "--workers 0: must be between 1 and 4096"),
        (["--slurm_partition", "cpu"], "--slurm_partition: requires --executor slurm, not local"),
        (["--ray_address", "auto", "--executor", "slurm"], "--ray_address: requires --executor ray, not slurm"),
        (["--executor", "slurm", "--slurm_partition", "a;b"], "--slurm_partition 'a;b': allowed are letters, digits"),
        (["--executor", "slurm", "--slurm_partition", "a\n"], r"--slurm_partition 'a\n': allowed are letters, digits"),
        (["--executor", "slurm", "--slurm_time", "2h"], "--slurm_time '2h': must be MINUTES, HH:MM:SS"),
        (["--executor", "slurm", "--slurm_memory_gb", "nan"], "--slurm_memory_gb nan: must be between"),
        (["--executor", "slurm", "--slurm_args", "array=0-9"], "'array=0-9': the build sets array itself"),
        (["--executor", "slurm", "--slurm_args", "Account=a"], "'Account=a': must be key=value or key"),
        (["--executor", "slurm", "--slurm_args", "account=a\nb"], "contains a character that cannot be printed"),
        (["--executor", "ray", "--ray_address", "host"], "--ray_address 'host': must be auto, local or HOST:PORT"),
    ],
)
def test_invalid_flag_is_an_error_that_states_what_is_allowed(flags, message):
    with pytest.raises(ValueError) as error:
        options(*flags)
    assert message in str(error.value)


@pytest.fixture
def attempt(tmp_path):
    return Attempt.create(tmp_path, "square")


def test_requeued_rank_skips_the_tasks_that_it_noted_as_done(tmp_path, attempt):
    ran = []
    attempt.note(1, "begin", 3)
    attempt.note(1, "done", 3)
    attempt.note(1, "begin", 7)
    step = RunTasks(lambda _, task: ran.append(task), tmp_path, [0, 3, 4, 7, 8, 9], attempt.folder)
    list(step.run(rank=1, world_size=2))
    assert ran == [7, 9]
    notes = NotesReader(attempt, 2)
    assert (notes.newly_done(), notes.in_progress) == ([3, 7, 9], [])


def test_incomplete_note_is_read_once_it_is_complete(attempt):
    notes, path = NotesReader(attempt, 1), attempt.folder / "notes" / "00000"
    path.write_text("begin 1\ndone 1\nbegin 12")
    assert (notes.newly_done(), notes.in_progress) == ([1], [])
    path.write_text("begin 1\ndone 1\nbegin 123\n")
    assert (notes.newly_done(), notes.in_progress) == ([], [123])


def test_stopped_or_removed_attempt_begins_no_task(tmp_path, attempt):
    def stopping(_, task):
        assert task == 0
        attempt.stop()

    list(RunTasks(stopping, tmp_path, [0, 1, 2], attempt.folder).run())
    assert NotesReader(attempt, 1).newly_done() == [0]
    assert Attempt(tmp_path / "gone").stopped


def test_attempt_is_open_until_it_is_closed(tmp_path, attempt):
    other = Attempt.create(tmp_path, "square")
    assert [found.folder for found in open_attempts(tmp_path)] == [attempt.folder, other.folder]
    attempt.close()
    assert [found.folder for found in open_attempts(tmp_path)] == [other.folder]


def test_errors_keep_their_type_and_message(attempt):
    class Mistake(ValueError):
        pass

    cases = [
        (Mistake("x.txt: line 3"), ValueError, "x.txt: line 3"),
        (FileNotFoundError(2, "No such file", "a b"), FileNotFoundError, "[Errno 2] No such file: 'a b'"),
        (OSError("shard: cannot write"), OSError, "shard: cannot write"),
        (KeyError("x"), RuntimeError, f"task 4: KeyError: 'x' (see {attempt.folder}/errors/00004.json)"),
    ]
    for given, kind, message in cases:
        attempt.write_error(4, given)
        with pytest.raises(kind) as raised:
            attempt.raise_error()
        assert type(raised.value) is kind
        assert str(raised.value) == message
    assert "traceback" in json.loads((attempt.folder / "errors" / "00004.json").read_text())
