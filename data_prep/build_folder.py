"""The folder `.build` of an unfinished build: its layout, its lock, and how a later call resumes or replaces the build.

    .build/plan.json                    arguments; reading tasks, each a list of pieces of a source
    .build/lock                         locked by the process that runs the build
    .build/spool/00000.txt .npz .sig    output of a reading task
    .build/comparisons.json             comparing tasks, each a share of all digests or signatures
    .build/duplicates/                  output of the comparing tasks
    .build/groups.json                  writing tasks, each a list of ranges of spooled documents
    .build/shards/128/train_00000_000.hdf5
    .build/done/read_00000.json         completion marker of a task, with the task's counts

A build with other arguments or inputs can reuse the text that an unfinished build has read. The usual reason is a
damaged input file or a wrong vocabulary size, found after hours of reading: most reading tasks of the corrected build
are the same. They keep their spools under their new task numbers; all later stages run again. A reading task runs again
too if one of its files has a later modification time than the task's marker, even in a build with the same arguments.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bert_pld.data.shards import MANIFEST_NAME
from bert_pld.files import PARTIAL, TOKENIZER_FILES, FileLock, locked, write_atomically
from data_prep.data_card_page import DATA_CARD_NAME, DATA_CARD_PAGE_NAME
from data_prep.executors.slurm_queue import stop_orphaned_jobs
from data_prep.finished_build import is_finished
from data_prep.plan import PLAN_NAME, RECIPE_VERSION, BuildPlan
from data_prep.rows.shard_files import remove_placed_shards
from data_prep.sources.kind import Piece
from data_prep.spool import SPOOL_VERSION

BUILD_FOLDER = ".build"
_LOCK_NAME, _CARRIED_NAME = "lock", "carried"
_ARGUMENTS_OF_READING = ("language", "keep_languages", "deduplicate")
_SPOOL_SUFFIXES = (".txt", ".npz", ".sig")


class Markers:
    """Completion markers: the counts of a task, written after all files of the task are in place."""

    def __init__(self, build_dir: Path) -> None:
        self.folder = build_dir / "done"

    def path(self, stage: str, task: int) -> Path:
        """Return the path of a task's marker."""
        return self.folder / f"{stage}_{task:05d}.json"

    def write(self, stage: str, task: int, counts: dict[str, Any]) -> None:
        """Record that a task is done."""
        write_atomically(self.path(stage, task), json.dumps(counts, sort_keys=True) + "\n")

    def read(self, stage: str, task: int) -> dict[str, Any] | None:
        """Return the counts of a finished task, or None for an unfinished one."""
        path = self.path(stage, task)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


@contextmanager
def open_build_folder(output_dir: Path, plan: BuildPlan) -> Iterator[Path]:
    """Make or resume the build folder of `output_dir`, an absolute path, and hold its lock while the build runs.

    A directory with other files, a different build or a running build is a ValueError, and so is one on several file
    systems.
    """
    build_dir = output_dir / BUILD_FOLDER
    output_dir.mkdir(parents=True, exist_ok=True)
    if not (build_dir / PLAN_NAME).is_file():
        _require_empty(output_dir)
    build_dir.mkdir(exist_ok=True)
    with locked(build_dir / _LOCK_NAME) as obtained:
        if obtained is FileLock.BUSY:
            raise ValueError(f"--output_dir {output_dir}: another build is running in this directory")
        if obtained is FileLock.UNSUPPORTED:
            print(
                f"warning: --output_dir {output_dir}: its file system has no locks, so a second build in this directory"
                " would not be refused, and would damage this one",
                file=sys.stderr,
            )
        stop_orphaned_jobs(build_dir)
        if (build_dir / PLAN_NAME).is_file():
            _adopt_unfinished_build(build_dir, plan)
        else:
            _start_anew(build_dir, plan)
        for folder in ("spool", "duplicates", "done", *(f"shards/{length}" for length in plan.arguments.seq_lengths)):
            (build_dir / folder).mkdir(parents=True, exist_ok=True)
            # A task that was killed leaves what it has written, as much as a whole compressed source.
            for leftover in (build_dir / folder).glob(f".*{PARTIAL}"):
                leftover.unlink()
        data_dirs = plan.arguments.data_dirs(output_dir).values()
        for data_dir in data_dirs:
            data_dir.mkdir(exist_ok=True)
        try:
            _require_one_file_system(build_dir, data_dirs)
            yield build_dir
        except ValueError:
            # The user's arguments or inputs are wrong. The corrected build can reuse finished reading tasks, so the
            # folder is removed only where there are none.
            if not any((build_dir / "done").glob("read_*.json")):
                _discard_build(output_dir, plan)
            raise


def remove_build_folder(build_dir: Path) -> None:
    """Remove the build folder. The plan is removed last, so that an interrupted removal leaves a resumable build."""
    for path in build_dir.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    for name in ("comparisons.json", "groups.json", "masking.json", _LOCK_NAME, PLAN_NAME):
        (build_dir / name).unlink(missing_ok=True)
    shutil.rmtree(build_dir)


def _require_empty(output_dir: Path) -> None:
    allowed = {output_dir / BUILD_FOLDER, *_empty_data_dirs(output_dir)}
    other_files = sorted(path.name for path in output_dir.iterdir() if path not in allowed)
    if other_files:
        is_build = MANIFEST_NAME in other_files or any(output_dir.glob(f"seq_*/{MANIFEST_NAME}"))
        names = ", ".join(other_files[:3]) + " …" * (len(other_files) > 3)
        raise ValueError(
            f"--output_dir {output_dir}: holds {'another build' if is_build else 'other files'} ({names});"
            " nothing was changed; choose a new or empty directory"
        )


def _empty_data_dirs(output_dir: Path) -> list[Path]:
    """Return the folders of sequence lengths that an interrupted build made and left empty."""
    return [path for path in output_dir.glob("seq_*") if path.is_dir() and not any(path.iterdir())]


def _start_anew(build_dir: Path, plan: BuildPlan) -> None:
    """Write the plan of a new build, after removing what an interrupted conversion left in a folder without a plan."""
    _clear(build_dir, _LOCK_NAME)
    for folder in _empty_data_dirs(build_dir.parent):
        _remove_folder(folder)
    plan.write(build_dir)


def _clear(build_dir: Path, *kept: str) -> None:
    """Remove everything in the build folder except the files and folders with these names."""
    for path in build_dir.iterdir():
        if path.name in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _discard_build(output_dir: Path, plan: BuildPlan) -> None:
    """Remove the files of an unfinished build, and its directories where nothing else is in them."""
    remove_build_folder(output_dir / BUILD_FOLDER)
    for folder in [*plan.arguments.data_dirs(output_dir).values(), output_dir]:
        for name in TOKENIZER_FILES:
            (folder / name).unlink(missing_ok=True)
        if folder.is_dir() and not os.listdir(folder):
            _remove_folder(folder)


def _remove_folder(folder: Path) -> None:
    """Remove an empty folder; a link to one, a mount point, and one in a folder that is read-only stay."""
    with suppress(OSError):
        folder.rmdir()


def _require_one_file_system(build_dir: Path, data_dirs: Iterable[Path]) -> None:
    """Raise a ValueError if a data directory is, through a link, on another file system than the finished shards."""
    for data_dir in data_dirs:
        if os.stat(data_dir).st_dev != os.stat(build_dir / "shards").st_dev:
            raise ValueError(
                f"--output_dir {build_dir.parent}: {data_dir} and {build_dir} are on different file systems, between"
                " which shards cannot be renamed; make the whole --output_dir a link, or a folder, on one file system"
            )


def _adopt_unfinished_build(build_dir: Path, plan: BuildPlan) -> None:
    """Accept an unfinished build with the same plan; convert one with another plan if reading tasks can be reused.

    A build with the same plan is converted too if a file has changed since the build read it.
    """
    content = json.loads((build_dir / PLAN_NAME).read_text(encoding="utf-8"))
    same_spool = content.get("spool") == SPOOL_VERSION
    same_recipe = same_spool and content.get("recipe") == RECIPE_VERSION
    same_plan = same_recipe and content["identity"] == plan.identity()
    old = BuildPlan.read(build_dir) if same_recipe else None
    if old is not None and is_finished(build_dir.parent, old):  # it was killed while it removed its folder
        raise ValueError(
            f"--output_dir {build_dir.parent}: holds another build, complete; nothing was changed;"
            " choose a new or empty directory"
        )
    new_numbers = _reusable_tasks(build_dir, old, plan) if old is not None else {}
    changed = len(list((build_dir / "done").glob("read_*.json"))) - len(new_numbers)
    if same_plan and not changed:
        return
    if old is None or not (new_numbers or same_plan):
        raise ValueError(
            f"--output_dir {build_dir.parent}: holds an unfinished build"
            f" {'with other arguments or inputs' if same_recipe else 'of another release'};"
            f" nothing was changed; choose another directory, or remove {build_dir} to start again"
        )
    _convert(build_dir, new_numbers, old, plan)
    why = f"; {changed} run again, because their files have changed" if same_plan else ""
    print(
        f"{len(new_numbers)} of {len(plan.tasks)} reading tasks reused from an unfinished build{why}", file=sys.stderr
    )


def _convert(build_dir: Path, new_numbers: dict[int, int], old: BuildPlan, new: BuildPlan) -> None:
    """Convert the folder of an unfinished build to another plan; these reading tasks are kept under their new numbers.

    An interruption in the middle leaves a folder without a plan, which the next call treats as a new build.
    """
    aside = build_dir / _CARRIED_NAME
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "spool").mkdir(parents=True)
    (aside / "done").mkdir()
    for old_number, new_number in new_numbers.items():
        for suffix in _SPOOL_SUFFIXES:
            path = build_dir / "spool" / f"{old_number:05d}{suffix}"
            if path.is_file():
                os.link(path, aside / "spool" / f"{new_number:05d}{suffix}")
        # A link keeps the time at which the task was done, with which its files are compared.
        os.link(Markers(build_dir).path("read", old_number), Markers(aside).path("read", new_number))
    _remove_results(build_dir, old)
    (build_dir / PLAN_NAME).unlink()
    _clear(build_dir, _LOCK_NAME, _CARRIED_NAME)
    for folder in ("spool", "done"):
        os.replace(aside / folder, build_dir / folder)
    aside.rmdir()
    new.write(build_dir)


def _remove_results(build_dir: Path, old: BuildPlan) -> None:
    """Remove what an unfinished build has placed in its data directories.

    The markers of the later stages go first: with the old plan, an interruption leaves a build that runs them again.
    """
    for marker in (build_dir / "done").iterdir():
        if not marker.name.startswith("read_"):
            marker.unlink()
    output_dir = build_dir.parent
    for data_dir in filter(Path.is_dir, old.arguments.data_dirs(output_dir).values()):
        for name in (MANIFEST_NAME, DATA_CARD_NAME, DATA_CARD_PAGE_NAME, *TOKENIZER_FILES):
            (data_dir / name).unlink(missing_ok=True)
        remove_placed_shards(data_dir)
        for leftover in data_dir.glob(f".*{PARTIAL}"):
            leftover.unlink()
        if data_dir != output_dir and not os.listdir(data_dir):
            _remove_folder(data_dir)


def _reusable_tasks(build_dir: Path, old: BuildPlan, new: BuildPlan) -> dict[int, int]:
    """Map numbers of finished reading tasks of the old plan to their numbers in the new plan.

    A task is reused where the new plan has one with the same pieces, and none of their files has changed since.
    """
    old_arguments, new_arguments = (
        [getattr(plan.arguments, name) for name in _ARGUMENTS_OF_READING] for plan in (old, new)
    )
    if old_arguments != new_arguments or (old.arguments.bad_rows, new.arguments.bad_rows) == ("skip", "stop"):
        return {}
    # A source that is given twice makes two tasks with the same pieces.
    numbers_of: dict[str, list[int]] = defaultdict(list)
    for number, pieces in enumerate(new.tasks):
        numbers_of[_key(pieces)].append(number)
    new_numbers: dict[int, int] = {}
    for number, pieces in enumerate(old.tasks):
        marker = Markers(build_dir).path("read", number)
        if numbers_of[_key(pieces)] and marker.is_file():
            finished = marker.stat().st_mtime
            if not any(os.path.exists(piece.path) and os.stat(piece.path).st_mtime > finished for piece in pieces):
                new_numbers[number] = numbers_of[_key(pieces)].pop(0)
    return new_numbers


def _key(pieces: list[Piece]) -> str:
    return json.dumps([dataclasses.astuple(piece) for piece in pieces])
