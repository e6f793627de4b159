"""The plan of a build: its arguments and its list of tasks, fixed before anything is read and kept in the build folder.

A build is a few lists of tasks, one after another: reading, comparing (for duplicates), writing. Each task is a pure
function of (plan, its number), so that any executor may run them, in any order and number at a time, and the bytes come
out the same.

    .build/plan.json                    arguments; reading tasks, each a list of pieces of a source
    .build/spool/00000.txt .npz .sig    what a reading task leaves
    .build/comparisons.json             comparing tasks, each a share of all digests or signatures
    .build/duplicates/                  what they find
    .build/groups.json                  writing tasks, each a list of ranges of spooled documents
    .build/shards/128/train_00000_000.hdf5
    .build/done/read_00000.json         completion marker of a task, with its counts
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bert_pld.data.shards import MANIFEST_NAME
from bert_pld.files import write_atomically
from data_prep.executors.slurm_queue import end_leftovers
from data_prep.sources import Source
from data_prep.sources.kind import Piece

BUILD_FOLDER = ".build"
DATA_CARD_NAME, DATA_CARD_PAGE_NAME = "data_card.json", "data_card.html"
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")
READING_TASK_BYTES = 4 << 20
RECIPE_VERSION = 2
"""Raised when the same arguments come to give other bytes."""


@dataclasses.dataclass(frozen=True)
class BuildArguments:
    """What decides the bytes of a build."""

    sources: tuple[str, ...]
    vocab: str | None
    """SHA-256 of the given vocabulary file, None where one is trained."""
    vocab_size: int | None
    cased: bool
    seq_lengths: tuple[int, ...]
    """Ascending. Of one length the output directory is the data directory, of several it holds one for each."""
    objective: str
    validation_fraction: float
    seed: int
    shard_rows: int
    language: str
    """Of the text, for sentence splitting."""
    keep_languages: tuple[str, ...] = ()
    """Documents in others are dropped; empty keeps all."""
    deduplicate: str = "near"
    """`near`, `exact` or `none`."""
    similarity: float = 0.6
    """From which estimated Jaccard similarity on two documents are near duplicates."""
    format: str = "native"
    """`native` or `nvidia`, of the shards."""
    dupe_factor: int = 1
    """Sets of masks for each training row in NVIDIA's format; native rows have none."""

    def data_dirs(self, output_dir: Path) -> dict[int, Path]:
        """The data directory of each sequence length."""
        if len(self.seq_lengths) == 1:
            return {self.seq_lengths[0]: output_dir}
        return {seq_length: output_dir / f"seq_{seq_length}" for seq_length in self.seq_lengths}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Arguments and reading tasks of a build."""

    arguments: BuildArguments
    tasks: list[list[Piece]]
    source_of_task: list[int]
    """Which of the arguments' sources a task reads."""

    def identity(self) -> str:
        """A digest of the arguments and of what is to be read (names and sizes)."""
        content = json.dumps([RECIPE_VERSION, dataclasses.asdict(self)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def write(self, build_dir: Path) -> None:
        """Keep the plan for the tasks and for going on later."""
        content = {"identity": self.identity(), "recipe": RECIPE_VERSION, **dataclasses.asdict(self)}
        write_atomically(build_dir / "plan.json", json.dumps(content) + "\n")

    @classmethod
    def read(cls, build_dir: Path) -> Plan:
        """The plan of a build folder."""
        content = json.loads((build_dir / "plan.json").read_text(encoding="utf-8"))
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content["arguments"].items()
        }
        tasks = [[Piece(**piece) for piece in task] for task in content["tasks"]]
        return cls(BuildArguments(**arguments), tasks, content["source_of_task"])


def make_plan(arguments: BuildArguments) -> Plan:
    """List what the sources hold and pack it, in order, into reading tasks of about 4 MiB.

    Raises:
        ValueError: a source is empty or cannot be found.
    """
    tasks: list[list[Piece]] = []
    source_of_task: list[int] = []
    for number, source in enumerate(arguments.sources):
        size = READING_TASK_BYTES
        for piece in Source.parse(source).pieces():
            if size + piece.bytes > READING_TASK_BYTES:
                tasks.append([])
                source_of_task.append(number)
                size = 0
            tasks[-1].append(piece)
            size += piece.bytes
    return Plan(arguments, tasks, source_of_task)


class Markers:
    """Completion markers: a task's counts, written after all its files are in place."""

    def __init__(self, build_dir: Path) -> None:
        self.folder = build_dir / "done"

    def write(self, stage: str, task: int, counts: dict[str, Any]) -> None:
        """Mark a task as done."""
        write_atomically(self.folder / f"{stage}_{task:05d}.json", json.dumps(counts, sort_keys=True) + "\n")

    def read(self, stage: str, task: int) -> dict[str, Any] | None:
        """The counts of a finished task, None for one that is still to be done."""
        path = self.folder / f"{stage}_{task:05d}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def is_finished(output_dir: Path, plan: Plan) -> bool:
    """Whether `output_dir` holds this very build, complete."""
    for data_dir in plan.arguments.data_dirs(output_dir).values():
        card = data_dir / DATA_CARD_NAME
        if not card.is_file() or not (data_dir / MANIFEST_NAME).is_file():
            return False
        try:
            if json.loads(card.read_text(encoding="utf-8"))["build"] != plan.identity():
                return False
        except (ValueError, TypeError, KeyError):
            return False
    return True


@contextmanager
def opened_build(
    output_dir: Path, plan: Plan, carry_over: Callable[[Path, Plan, Plan], int] = lambda *_: 0
) -> Iterator[Path]:
    """The build folder of `output_dir`, made or taken up again, locked for as long as the build runs.

    Args:
        output_dir: absolute.
        plan: of the build.
        carry_over: called with (build folder, its plan, `plan`) where an unfinished build with another plan is found;
            says how many reading tasks it could turn over to this one.

    Raises:
        ValueError: the directory holds anything else, a different build, or a build that is running now.
    """
    build_dir = output_dir / BUILD_FOLDER
    output_dir.mkdir(parents=True, exist_ok=True)
    plan_file = build_dir / "plan.json"
    if not plan_file.is_file():
        strangers = sorted(path.name for path in output_dir.iterdir() if path != build_dir)
        if strangers:
            is_build = MANIFEST_NAME in strangers or any(output_dir.glob(f"seq_*/{MANIFEST_NAME}"))
            what = "another build" if is_build else "other files"
            raise ValueError(
                f"--output_dir {output_dir}: holds {what} ({', '.join(strangers[:3])}{' …' * (len(strangers) > 3)});"
                " nothing was changed; choose an empty or new directory"
            )
    build_dir.mkdir(exist_ok=True)
    with open(build_dir / "lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise ValueError(f"--output_dir {output_dir}: another build is writing here now") from None
        end_leftovers(build_dir)
        kept = json.loads(plan_file.read_text(encoding="utf-8")) if plan_file.is_file() else None
        if kept is not None and kept["identity"] != plan.identity():
            same_recipe = kept.get("recipe") == RECIPE_VERSION
            carried = carry_over(build_dir, Plan.read(build_dir), plan) if same_recipe else 0
            if not carried:
                raise ValueError(
                    f"--output_dir {output_dir}: holds an unfinished build with other arguments or inputs;"
                    f" nothing was changed; choose another directory, or remove {build_dir} and start anew"
                )
            print(f"{carried} of {len(plan.tasks)} reading tasks taken over from an unfinished build", file=sys.stderr)
        if not plan_file.is_file():
            plan.write(build_dir)
        for folder in ("spool", "duplicates", "done", *(f"shards/{length}" for length in plan.arguments.seq_lengths)):
            (build_dir / folder).mkdir(parents=True, exist_ok=True)
        for data_dir in plan.arguments.data_dirs(output_dir).values():
            data_dir.mkdir(exist_ok=True)
        try:
            yield build_dir
        except ValueError:
            # A mistake in arguments or inputs. What was read by then the corrected build takes over.
            if not any((build_dir / "done").glob("read_*.json")):
                discard_build(output_dir, plan)
            raise


def discard_build(output_dir: Path, plan: Plan) -> None:
    """Remove what an unfinished build left, and its directories if nothing else is in them."""
    remove_build(output_dir / BUILD_FOLDER)
    for folder in [*plan.arguments.data_dirs(output_dir).values(), output_dir]:
        for name in VOCABULARY_FILES:
            (folder / name).unlink(missing_ok=True)
        if folder.is_dir() and not os.listdir(folder):
            folder.rmdir()


def remove_build(build_dir: Path) -> None:
    """Remove the build folder; the plan goes last, so that an interrupted removal leaves a build that can go on."""
    for path in build_dir.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    for name in ("comparisons.json", "groups.json", "masking.json", "lock", "plan.json"):
        (build_dir / name).unlink(missing_ok=True)
    shutil.rmtree(build_dir)
