"""Splits the documents into training and validation, and packs each split into the groups of the writing tasks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bert_pld.data.shards import SPLITS
from bert_pld.files import write_atomically
from data_prep.dedup.duplicates import Duplicates
from data_prep.spool import Spool

GROUP_BYTES = 8 << 20
FEWEST_GROUP_DOCUMENTS = 16
"""A group needs several documents, because the random B of a pair comes from the same group."""


@dataclasses.dataclass
class Group:
    """The documents of one writing task: ranges of the documents of one split in some spools."""

    split: str
    number: int
    """Index among the groups of the split."""
    members: list[tuple[int, int, int]]
    """(spool, first, last + 1): the documents of this split between two documents of the spool."""
    documents: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Groups:
    """All writing tasks, and the highest draw of a validation document."""

    highest_validation_draw: int
    tasks: list[Group]

    def write(self, build_dir: Path) -> None:
        """Write the groups for the tasks."""
        write_atomically(build_dir / "groups.json", json.dumps(dataclasses.asdict(self)) + "\n")

    @classmethod
    def read(cls, build_dir: Path) -> Groups:
        """Read the groups of a build folder."""
        content = json.loads((build_dir / "groups.json").read_text(encoding="utf-8"))
        return cls(content["highest_validation_draw"], [Group(**group) for group in content["tasks"]])

    def chosen(
        self, spool: Spool, duplicates: Duplicates, seed: int, split: str, first: int = 0, end: int | None = None
    ) -> NDArray[np.intp]:
        """Return the indices of a spool's documents in a split, without duplicates, from `first` to before `end`."""
        kept = duplicates.kept(spool.task, len(spool))[first:end]
        draws = spool.draws(seed, first, end)
        return first + np.flatnonzero(kept & _is_in(split, draws, self.highest_validation_draw))


def make_groups(build_dir: Path, tasks: int, seed: int, validation_fraction: float) -> Groups:
    """Assign documents to splits by their draw, and pack each split, in order, into groups of about 8 MiB.

    The document with the lowest draw is always a validation document, and the one with the highest a training document.
    Equal texts have equal draws, so the validation split never contains a copy of a training document, even where
    duplicates are kept. Spools with fewer than two different documents are a ValueError.
    """
    duplicates = Duplicates(build_dir)
    lowest, highest = 2**64 - 1, 0
    for task in range(tasks):
        spool = Spool(build_dir / "spool", task)
        draws = spool.draws(seed)[duplicates.kept(task, len(spool))]
        if len(draws):
            lowest, highest = min(lowest, int(draws.min())), max(highest, int(draws.max()))
    if lowest >= highest:
        raise ValueError(
            "the sources hold a single document, but training and validation need at least one each;"
            " add more text, or split it into documents"
        )
    bound = min(max(int(validation_fraction * 2**64), lowest), highest - 1)
    groups: list[Group] = []
    for split in SPLITS:
        made: list[Group] = []
        for task in range(tasks):
            spool = Spool(build_dir / "spool", task)
            kept = duplicates.kept(task, len(spool))
            documents = np.flatnonzero(kept & _is_in(split, spool.draws(seed), bound))
            _pack(made, split, task, documents, spool.bytes[documents])
        if len(made) > 1 and (made[-1].documents < FEWEST_GROUP_DOCUMENTS or made[-1].bytes < GROUP_BYTES // 4):
            last = made.pop()
            made[-1].members += last.members
            made[-1].documents += last.documents
            made[-1].bytes += last.bytes
        groups += made
    return Groups(bound, groups)


def _is_in(split: str, draws: NDArray[np.uint64], bound: int) -> NDArray[np.bool_]:
    return draws <= np.uint64(bound) if split == "validation" else draws > np.uint64(bound)


def _pack(groups: list[Group], split: str, task: int, documents: NDArray[np.intp], sizes: NDArray[np.int64]) -> None:
    """Add one spool's documents of a split to the last group, and start another group when it is full."""
    first = 0
    sums = np.concatenate([[0], np.cumsum(sizes)])
    while first < len(sizes):
        if not groups or (groups[-1].bytes >= GROUP_BYTES and groups[-1].documents >= FEWEST_GROUP_DOCUMENTS):
            groups.append(Group(split, len(groups), [], 0, 0))
        group = groups[-1]
        end = int(np.searchsorted(sums, sums[first] + max(GROUP_BYTES - group.bytes, 1)))
        end = min(max(end, first + FEWEST_GROUP_DOCUMENTS - group.documents), len(sizes))
        group.members.append((task, int(documents[first]), int(documents[end - 1]) + 1))
        group.documents += end - first
        group.bytes += int(sums[end] - sums[first])
        first = end
