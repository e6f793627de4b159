"""The plan of a build: its arguments and its reading tasks, fixed before any text is read.

A build is a few lists of tasks, one list after another: read, compare (to find duplicates), write. A task is a pure
function of (plan, task number). Any executor may therefore run the tasks of a list in any order and many at a time, and
the bytes are the same. `build_folder` describes the files that the tasks leave.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from bert_pld.files import write_atomically
from data_prep.sources import Source
from data_prep.sources.kind import Piece
from data_prep.spool import SPOOL_VERSION

PLAN_NAME = "plan.json"
READING_TASK_BYTES = 4 << 20
RECIPE_VERSION = 5
"""Increase it when a change makes the same arguments give other bytes."""
_LATER_ARGUMENTS = ("tokenizer", "algorithm", "pack")
"""Arguments that older releases do not have."""


@dataclasses.dataclass(frozen=True)
class BuildArguments:
    """The arguments that determine the bytes of a build."""

    sources: tuple[str, ...]
    vocab: str | None
    """SHA-256 of the given vocabulary file; None trains a vocabulary."""
    vocab_size: int | None
    cased: bool
    seq_lengths: tuple[int, ...]
    """Ascending. A single length makes the output directory the data directory; several make one directory each."""
    objective: str
    validation_fraction: float
    seed: int
    shard_rows: int
    language: str
    """Language of the text, which selects the rules for sentence splitting."""
    keep_languages: tuple[str, ...] = ()
    """Documents in other languages are dropped; an empty tuple keeps all documents."""
    deduplicate: str = "near"
    """`near`, `exact` or `none`."""
    similarity: float = 0.6
    """Lowest estimated Jaccard similarity at which two documents count as near duplicates."""
    format: str = "native"
    """Shard format, `native` or `nvidia`."""
    bad_rows: str = "stop"
    """What to do with rows that cannot be read: `stop` or `skip`."""
    dupe_factor: int = 1
    """Sets of masks for each training row in NVIDIA's format; native rows hold no masks."""
    accents: str = "auto"
    """`keep` or `strip` accents in lower case; `auto` keeps them where stripping would change many characters."""
    tokenizer: str | None = None
    """SHA-256 of a given tokenizer that is not a `vocab.txt`, with its special tokens."""
    algorithm: str = "wordpiece"
    """Kind of the trained tokenizer: `wordpiece`, `bpe` or `unigram`."""
    pack: str = "stream"
    """What a row of objective `mlm` holds: a piece of one `stream` of all documents, or `documents`."""

    def to_json(self) -> dict[str, Any]:
        """Return the arguments. A later one is left out at its default, so that older builds keep their identity."""
        values = dataclasses.asdict(self)
        for name in _LATER_ARGUMENTS:
            if values[name] == getattr(type(self), name):
                del values[name]
        return values

    def data_dirs(self, output_dir: Path) -> dict[int, Path]:
        """Return the data directory of each sequence length."""
        if len(self.seq_lengths) == 1:
            return {self.seq_lengths[0]: output_dir}
        return {seq_length: output_dir / f"seq_{seq_length}" for seq_length in self.seq_lengths}


@dataclasses.dataclass(frozen=True)
class BuildPlan:
    """Arguments and reading tasks of a build."""

    arguments: BuildArguments
    tasks: list[list[Piece]]
    """The pieces that each reading task reads."""
    source_of_task: list[int]
    """Index into `arguments.sources` for each reading task."""

    def identity(self) -> str:
        """Return a digest of the arguments and of the names and sizes of the inputs."""
        content = json.dumps([RECIPE_VERSION, self._to_json()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "arguments": self.arguments.to_json()}

    def write(self, build_dir: Path) -> None:
        """Write the plan for the tasks, and for a later call that resumes the build."""
        content = {"identity": self.identity(), "recipe": RECIPE_VERSION, "spool": SPOOL_VERSION, **self._to_json()}
        write_atomically(build_dir / PLAN_NAME, json.dumps(content) + "\n")

    @classmethod
    def read(cls, build_dir: Path) -> BuildPlan:
        """Read the plan of a build folder."""
        content = json.loads((build_dir / PLAN_NAME).read_text(encoding="utf-8"))
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content["arguments"].items()
        }
        tasks = [[Piece(**piece) for piece in task] for task in content["tasks"]]
        return cls(BuildArguments(**arguments), tasks, content["source_of_task"])


def make_plan(arguments: BuildArguments, output_dir: Path) -> BuildPlan:
    """List the pieces of all sources and pack them, in order, into reading tasks.

    A task has pieces of one source, of at most 4 MiB together, or one larger piece. Files in `output_dir` are left out,
    and a line on standard error says so: a build in a sub-folder of its source would read its own files.
    """
    own_folder = os.path.join(os.path.realpath(output_dir), "")
    real_folder = functools.lru_cache(maxsize=1024)(os.path.realpath)

    def is_own(path: str) -> bool:
        folder, name = os.path.split(path)
        # An address in the web is no path, but looks like one in the current folder.
        return os.path.join(real_folder(folder), name).startswith(own_folder) and os.path.exists(path)

    tasks: list[list[Piece]] = []
    source_of_task: list[int] = []
    for number, source in enumerate(arguments.sources):
        size = READING_TASK_BYTES
        pieces = Source.parse(source).pieces()
        own = dict.fromkeys(piece.path for piece in pieces if is_own(piece.path))
        if own:
            names = ", ".join(list(own)[:3]) + " …" * (len(own) > 3)
            print(f"{source}: left out what is in --output_dir ({len(own):,}): {names}", file=sys.stderr)
        for piece in pieces:
            if piece.path in own:
                continue
            if size + piece.bytes > READING_TASK_BYTES:
                tasks.append([])
                source_of_task.append(number)
                size = 0
            tasks[-1].append(piece)
            size += piece.bytes
    return BuildPlan(arguments, tasks, source_of_task)
