"""How a later call goes on with the folder of an unfinished build, or replaces it."""

import dataclasses
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from made_up_corpus import build

from bert_pld.data.nvidia_format import shard_name as nvidia_shard_name
from bert_pld.data.shards import SPLITS, shard_name
from data_prep.build_folder import Markers, open_build_folder
from data_prep.plan import RECIPE_VERSION, BuildArguments, BuildPlan, make_plan
from data_prep.sources.kind import Piece

ARGUMENTS = BuildArguments(("text=text",), None, 300, False, (32, 64), "mlm", 0.1, 0, 64, "en")
COUNTS = {"documents": 1}


def plan_of(*tasks, **changes):
    """Return a plan whose reading tasks read one file each."""
    pieces = [[Piece("text", str(path), 0, 1)] for path in tasks]
    return BuildPlan(dataclasses.replace(ARGUMENTS, **changes), pieces, [0] * len(pieces))


def begin(output_dir, plan, finished):
    """Begin a build and stop it after these reading tasks."""
    with open_build_folder(output_dir, plan) as build_dir:
        for task in finished:
            (build_dir / "spool" / f"{task:05d}.txt").write_text(f"{plan.tasks[task][0].path} read as {task}")
            Markers(build_dir).write("read", task, COUNTS)


def spooled(build_dir):
    """Return the content of each spool whose reading task is done, by the task's number."""
    done = sorted(int(path.stem.removeprefix("read_")) for path in (build_dir / "done").glob("read_*.json"))
    return {task: (build_dir / "spool" / f"{task:05d}.txt").read_text() for task in done}


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_interrupted_conversion_leaves_nothing_that_the_next_build_trusts(tmp_path):
    build_dir = tmp_path / ".build"
    for name in ("done/read_00000.json", "spool/00000.txt", "carried/spool/00000.txt", "tokenizer.json", "groups.json"):
        (build_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (build_dir / name).write_text("{}")
    plan = plan_of("a.txt")
    with open_build_folder(tmp_path, plan):
        assert files_in(tmp_path) == [".build/lock", ".build/plan.json"]
        assert BuildPlan.read(build_dir) == plan
        assert Markers(build_dir).read("read", 0) is None


def test_empty_folders_of_an_interrupted_build_do_not_hinder_the_next(tmp_path):
    for length in (32, 128):
        (tmp_path / f"seq_{length}").mkdir()
    with open_build_folder(tmp_path, plan_of("a.txt")):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".build", "seq_32", "seq_64"]


def test_error_in_the_input_is_reported_where_the_output_directory_is_a_link(tmp_path):
    """A link to a folder cannot be removed as a folder can."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(ValueError, match=r"^the input is damaged$"), open_build_folder(tmp_path / "link", plan_of("a")):
        raise ValueError("the input is damaged")
    assert list((tmp_path / "real").iterdir()) == []
    assert (tmp_path / "link").is_symlink()


def test_the_folder_of_a_length_may_be_a_link(tmp_path):
    output_dir = tmp_path / "out"
    (tmp_path / "elsewhere").mkdir()
    output_dir.mkdir()
    (output_dir / "seq_32").symlink_to("../elsewhere")
    with open_build_folder(output_dir, plan_of("a")):
        assert (output_dir / "seq_32").is_symlink()
        assert sorted(path.name for path in output_dir.iterdir()) == [".build", "seq_32", "seq_64"]


def test_what_a_killed_task_has_half_written_is_removed_when_the_build_goes_on(tmp_path):
    begin(tmp_path, plan_of("a", "b"), finished=[0])
    names = ["spool/.00001.txt.6271a2ba.partial", "shards/32/.train_00000_000.hdf5.8b564171.partial"]
    for name in names:
        (tmp_path / ".build" / name).write_text("half")
    with open_build_folder(tmp_path, plan_of("a", "b")) as build_dir:
        assert [name for name in names if (build_dir / name).exists()] == []
        assert spooled(build_dir) == {0: "a read as 0"}


@pytest.fixture
def finished(corpus, sound_build, tmp_path):
    """A copy of a finished build."""
    return shutil.copytree(sound_build, tmp_path / "finished")


def test_finished_build_whose_input_has_changed_since_is_an_error(corpus, finished, capsys):
    """The size of the input alone does not show that it has changed."""
    assert build(corpus, finished) == 0
    assert "already holds this build, complete; nothing to do" in capsys.readouterr().out
    os.utime(finished / "manifest.json", (0, 0))
    assert build(corpus, finished) == 1
    assert f"holds a build of an older {corpus}/part_0.txt; nothing was changed" in capsys.readouterr().err


def test_finished_build_without_one_of_its_shards_is_an_error(corpus, finished, capsys):
    shard = finished / "train_00000.hdf5"
    size = shard.stat().st_size
    os.truncate(shard, size - 1)
    assert build(corpus, finished) == 1
    assert f"holds this build, but {shard} has {size - 1} bytes instead of {size}; " in capsys.readouterr().err
    shard.unlink()
    assert build(corpus, finished) == 1
    assert f"holds this build, but {shard} is missing; nothing was changed; choose" in capsys.readouterr().err


def test_files_of_an_output_directory_in_the_folder_of_its_source_are_not_read(tmp_path, monkeypatch, capsys):
    output_dir = tmp_path / "shards"
    (tmp_path / "a.txt").write_text("A text.\n")
    arguments = dataclasses.replace(ARGUMENTS, sources=(f"text={tmp_path}", "text=a.txt"))
    monkeypatch.chdir(tmp_path)
    before = make_plan(arguments, output_dir)
    assert [[piece.path for piece in task] for task in before.tasks] == [[f"{tmp_path}/a.txt"], ["a.txt"]]
    (output_dir / "seq_32").mkdir(parents=True)
    (output_dir / "seq_32" / "vocab.txt").write_text("[PAD]\n")
    for place in (output_dir, Path("shards")):
        capsys.readouterr()
        assert make_plan(arguments, place) == before
        expected = f"text={tmp_path}: left out what is in --output_dir (1): {output_dir}/seq_32/vocab.txt\n"
        assert capsys.readouterr().err == expected


OTHER_FILE_SYSTEM = Path("/dev/shm")


def test_a_length_on_another_file_system_is_an_error_before_anything_is_read(tmp_path):
    if not OTHER_FILE_SYSTEM.is_dir() or OTHER_FILE_SYSTEM.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two file systems")
    (tmp_path / "seq_64").symlink_to(tempfile.mkdtemp(dir=OTHER_FILE_SYSTEM))
    try:
        with pytest.raises(ValueError, match=r"seq_64 and \S+/\.build are on different file systems") as caught:
            begin(tmp_path, plan_of("a"), finished=[0])
        assert "\n" not in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["seq_64"]
    finally:
        (tmp_path / "seq_64").resolve().rmdir()


def test_reading_tasks_of_a_source_that_is_given_twice_are_reused_once_each(tmp_path, capsys):
    begin(tmp_path, plan_of("a", "b", "a", "a"), finished=[0, 1, 3])
    with open_build_folder(tmp_path, plan_of("b", "a", "a", seq_lengths=(64,))) as build_dir:
        assert spooled(build_dir) == {0: "b read as 1", 1: "a read as 0", 2: "a read as 3"}
    assert "3 of 3 reading tasks reused" in capsys.readouterr().err
    with open_build_folder(tmp_path, plan_of("a", "a", "a", "b", "c", seq_lengths=(32,))) as build_dir:
        assert spooled(build_dir) == {0: "a read as 0", 1: "a read as 3", 3: "b read as 1"}


def test_resumed_build_reads_files_again_that_have_changed_since(tmp_path, capsys):
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_text("1")
    output_dir, plan = tmp_path / "out", plan_of(*files)
    begin(output_dir, plan, finished=[0, 1])
    later_stage = output_dir / ".build" / "done" / "write_00000.json"
    later_stage.write_text("{}")
    first, second = (f"{file} read as {task}" for task, file in enumerate(files[:2]))
    with open_build_folder(output_dir, plan) as build_dir:
        assert spooled(build_dir) == {0: first, 1: second}
        assert later_stage.exists()
    assert capsys.readouterr().err == ""
    os.utime(files[2])  # was not read yet
    os.utime(files[0], (time.time() + 10, time.time() + 10))
    for _ in range(2):
        with open_build_folder(output_dir, plan) as build_dir:
            assert spooled(build_dir) == {1: second}
            assert not later_stage.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("1 of 3 reading tasks reused from an unfinished build; 1 run again, because")
    os.utime(files[1], (time.time() + 10, time.time() + 10))
    with open_build_folder(output_dir, plan) as build_dir:
        assert spooled(build_dir) == {}


def test_build_with_another_recipe_is_one_of_another_release(tmp_path):
    begin(tmp_path, plan_of("a"), finished=[0])
    file = tmp_path / ".build" / "plan.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "recipe": RECIPE_VERSION - 1, "identity": "other"}))
    with pytest.raises(ValueError, match="holds an unfinished build of another release; nothing was changed"):
        begin(tmp_path, plan_of("a"), finished=[])
    assert spooled(tmp_path / ".build") == {0: "a read as 0"}


SHARDS = [name_of(split, n) for name_of in (shard_name, nvidia_shard_name) for split in SPLITS for n in range(2)]
RESULTS = [*SHARDS, "vocab.txt", "tokenizer.json", "data_card.json", "data_card.html", "manifest.json", ".x.0f.partial"]


@pytest.mark.parametrize(("old_lengths", "new_lengths"), [((32,), (64,)), ((32, 64), (32, 128)), ((32,), (32, 64))])
def test_results_of_the_old_arguments_are_removed_when_a_build_is_converted(tmp_path, old_lengths, new_lengths):
    old, new = plan_of("a", seq_lengths=old_lengths), plan_of("a", seq_lengths=new_lengths)
    begin(tmp_path, old, finished=[0])
    for data_dir in old.arguments.data_dirs(tmp_path).values():
        for name in RESULTS:
            (data_dir / name).write_text("{}")
    (tmp_path / "notes.md").write_text("not of the build")
    with open_build_folder(tmp_path, new) as build_dir:
        assert spooled(build_dir) == {0: "a read as 0"}
        left = {path for path in tmp_path.rglob("*") if build_dir not in (path, *path.parents)}
        assert left == {tmp_path / "notes.md", *new.arguments.data_dirs(tmp_path).values()} - {tmp_path}


def test_complete_build_whose_folder_was_not_yet_removed_is_not_converted(tmp_path):
    old = plan_of("a", seq_lengths=(32,))
    begin(tmp_path, old, finished=[0])
    (tmp_path / "data_card.json").write_text(json.dumps({"build": old.identity()}))
    (tmp_path / "manifest.json").write_text("{}")
    before = files_in(tmp_path)
    with pytest.raises(ValueError, match="holds another build, complete; nothing was changed"):
        begin(tmp_path, plan_of("a", seq_lengths=(64,)), finished=[])
    assert files_in(tmp_path) == before
