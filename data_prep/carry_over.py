"""What a build with other arguments or inputs can take over from an unfinished one: the text that was read.

After hours of reading, a damaged file is replaced or a vocabulary size put right; that is another build, but most of
its reading tasks are the same. They keep their spools under their new numbers; everything later is done again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

from data_prep.plan import Markers, Plan
from data_prep.sources.kind import Piece

_DECIDE_READING = ("language", "keep_languages", "deduplicate")
_SPOOL_SUFFIXES = (".txt", ".npz", ".sig")


def carry_over(build_dir: Path, old: Plan, new: Plan) -> int:
    """Turn the folder of an unfinished build into that of another one.

    A finished reading task is taken over where the new plan has one of the same pieces and none of their files has
    changed since. Interrupted half-way, it leaves a folder that the next call makes a start with.

    Returns:
        How many reading tasks were taken over; where it is 0 nothing was changed.
    """
    taken = _tasks_to_take(build_dir, old, new)
    if not taken:
        return 0
    aside = build_dir / "carried"
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "spool").mkdir(parents=True)
    (aside / "done").mkdir()
    for before, after in taken.items():
        for suffix in _SPOOL_SUFFIXES:
            path = build_dir / "spool" / f"{before:05d}{suffix}"
            if path.is_file():
                os.link(path, aside / "spool" / f"{after:05d}{suffix}")
        counts = Markers(build_dir).read("read", before)
        assert counts is not None
        Markers(aside).write("read", after, counts)
    (build_dir / "plan.json").unlink()
    for path in build_dir.iterdir():
        if path.is_dir() and path != aside:
            shutil.rmtree(path)
        elif path.is_file() and path.name != "lock":
            path.unlink()
    for folder in ("spool", "done"):
        os.replace(aside / folder, build_dir / folder)
    aside.rmdir()
    new.write(build_dir)
    return len(taken)


def _tasks_to_take(build_dir: Path, old: Plan, new: Plan) -> dict[int, int]:
    """From numbers of finished reading tasks of the old plan to their numbers in the new one."""
    decisive = [[getattr(plan.arguments, name) for name in _DECIDE_READING] for plan in (old, new)]
    if decisive[0] != decisive[1]:
        return {}
    number_of = {_key(pieces): number for number, pieces in enumerate(new.tasks)}
    taken: dict[int, int] = {}
    for number, pieces in enumerate(old.tasks):
        marker = build_dir / "done" / f"read_{number:05d}.json"
        if _key(pieces) in number_of and marker.is_file() and not _changed_since(pieces, marker.stat().st_mtime):
            taken[number] = number_of[_key(pieces)]
    return taken


def _key(pieces: list[Piece]) -> str:
    return json.dumps([dataclasses.astuple(piece) for piece in pieces])


def _changed_since(pieces: list[Piece], time: float) -> bool:
    return any(os.path.exists(piece.path) and os.stat(piece.path).st_mtime > time for piece in pieces)
