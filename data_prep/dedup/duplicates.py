"""Duplicates among all documents of a build: exact ones by digest, near ones by MinHash signature.

The first of several duplicates, in the order of the sources, is kept. There are three steps; the memory of a comparing
task does not depend on the size of the corpus:

1. Each task searches a share of all digests for values that occur more than once; `join_exact` merges the results.
2. Each task searches some bands of the remaining signatures (or a share of one band). It compares the documents whose
   signatures agree in a band, and keeps the pairs whose estimated similarity reaches the threshold.
3. `cluster_near` joins the pairs into clusters (connected components) and keeps the first document of each.

A document's number is (reading task · 2³² + index in its spool). The numbers of the duplicates are the only data of
the whole corpus that must fit into the memory of one process: 8 bytes each, and about 0.4 KB for each near duplicate
while `cluster_near` joins pairs.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bert_pld.files import write_atomically
from data_prep.dedup.minhash import BANDS, HASHES, UInt64Array
from data_prep.spool import Spool, write_array

DEDUPLICATION = ("near", "exact", "none")
KEYS_PER_TASK = 1 << 20
BANDS_PER_TASK = 8
EXACT_NAME, NEAR_NAME = "all_exact.npy", "all_near.npy"
JOINED_PAIRS = 1 << 20
"""Smallest number of pairs that `cluster_near` joins at once."""
_PAIR_BATCH = 1 << 18
_HALF = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class Share:
    """The work of a comparing task: of the keys of bands [first, end), one of `parts` equal parts."""

    first_band: int
    end_band: int
    part: int
    parts: int


@dataclasses.dataclass(frozen=True)
class Comparisons:
    """The comparing tasks of a build."""

    exact: list[Share]
    near: list[Share]

    @classmethod
    def of(cls, documents: int) -> Comparisons:
        """Return the tasks for a number of documents: several bands each, or a share of one band of a large corpus."""
        parts = max(-(-documents // KEYS_PER_TASK), 1)
        bands = min(max(KEYS_PER_TASK // max(documents, 1), 1), BANDS_PER_TASK)
        return cls(
            exact=[Share(0, 0, part, parts) for part in range(parts)],
            near=[Share(b, min(b + bands, BANDS), p, parts) for b in range(0, BANDS, bands) for p in range(parts)],
        )

    def write(self, build_dir: Path) -> None:
        """Write the list for the tasks."""
        write_atomically(build_dir / "comparisons.json", json.dumps(dataclasses.asdict(self)) + "\n")

    @classmethod
    def read(cls, build_dir: Path) -> Comparisons:
        """Read the list of a build folder."""
        content = json.loads((build_dir / "comparisons.json").read_text(encoding="utf-8"))
        return cls(*([Share(**share) for share in content[name]] for name in ("exact", "near")))


def find_exact(build_dir: Path, task: int, share: Share, spools: int) -> int:
    """Write the documents of a share that equal an earlier document, and return their number."""
    digests, numbers = [np.empty((0, 2), np.uint64)], [np.empty(0, np.uint64)]
    for spool in (Spool(build_dir / "spool", number) for number in range(spools)):
        words = np.ascontiguousarray(spool.digests).view(np.uint64)
        mine = np.flatnonzero(_is_in(share, words[:, 0]))
        digests.append(words[mine])
        numbers.append(_numbers(spool.task, mine))
    all_digests, all_numbers = np.concatenate(digests), np.concatenate(numbers)
    order = np.lexsort((all_numbers, all_digests[:, 1], all_digests[:, 0]))
    ranked = all_digests[order]
    repeated = np.sort(all_numbers[order[1:][(ranked[1:] == ranked[:-1]).all(axis=1)]])
    write_array(build_dir / "duplicates" / f"exact_{task:05d}.npy", repeated)
    return len(repeated)


def join_exact(build_dir: Path, tasks: int) -> int:
    """Merge the results of all tasks of step 1 into one list, and return its length."""
    folder = build_dir / "duplicates"
    found = np.sort(np.concatenate([np.load(folder / f"exact_{task:05d}.npy") for task in range(tasks)]))
    write_array(folder / EXACT_NAME, found)
    return len(found)


def find_near(build_dir: Path, task: int, share: Share, spools: int, similarity: float) -> int:
    """Write the similar pairs of a share, `[P, 2]` document numbers, and return the number of compared pairs."""
    exact = Duplicates(build_dir)
    pairs = [np.empty((0, 2), np.uint64)]
    compared = 0
    for band in range(share.first_band, share.end_band):
        keys, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for spool in (Spool(build_dir / "spool", number) for number in range(spools)):
            key = spool.band(band)
            mine = np.flatnonzero((key != 0) & _is_in(share, key) & exact.kept(spool.task, len(key)))
            keys.append(key[mine])
            numbers.append(_numbers(spool.task, mine))
        candidates = _candidate_pairs(np.concatenate(keys), np.concatenate(numbers))
        compared += len(candidates)
        for first in range(0, len(candidates), _PAIR_BATCH):
            block = candidates[first : first + _PAIR_BATCH]
            pairs.append(block[_similarities(build_dir, block) >= similarity])
    write_array(build_dir / "duplicates" / f"near_{task:05d}.npy", np.unique(np.concatenate(pairs), axis=0))
    return compared


def cluster_near(build_dir: Path, tasks: int) -> int:
    """Join all pairs into clusters, list all documents but the first of each, and return the length of the list."""
    folder = build_dir / "duplicates"
    joined, waiting = np.empty((0, 2), np.uint64), list[UInt64Array]()
    for task in range(tasks):
        waiting.append(np.load(folder / f"near_{task:05d}.npy"))
        # Two copies are a pair in nearly every band. Joining them from time to time keeps one pair for each duplicate;
        # waiting for as many new pairs as there are duplicates keeps the time proportional to the pairs.
        if task == tasks - 1 or sum(map(len, waiting)) >= max(JOINED_PAIRS, len(joined)):
            joined = _with_firsts(np.concatenate([joined, *waiting]))
            waiting = []
    found = joined[:, 0]
    write_array(folder / NEAR_NAME, found)
    return len(found)


def _with_firsts(pairs: UInt64Array) -> UInt64Array:
    """Return every document of the pairs that is not the first of its cluster, ascending, with the first: `[D, 2]`."""
    from scipy.sparse import coo_array  # imported here, so that workers need not wait for it
    from scipy.sparse.csgraph import connected_components

    members, places = np.unique(pairs, return_inverse=True)
    links = places.reshape(-1, 2)
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(len(members), len(members)))
    labels = connected_components(graph, directed=False)[1] if len(members) else np.empty(0, np.int32)
    # Members ascend, so the first document of a label has its lowest number.
    _, places_of_firsts = np.unique(labels, return_index=True)
    firsts = members[places_of_firsts][labels]
    is_later = members != firsts
    return np.stack([members[is_later], firsts[is_later]], axis=1)


class Duplicates:
    """The lists of duplicates on disk."""

    def __init__(self, build_dir: Path) -> None:
        paths = [build_dir / "duplicates" / name for name in (EXACT_NAME, NEAR_NAME)]
        self._lists = [np.load(path, mmap_mode="r") for path in paths if path.is_file()]

    def kept(self, task: int, documents: int) -> NDArray[np.bool_]:
        """Return which documents of a spool are kept: bool `[documents]`."""
        keep = np.ones(documents, bool)
        for numbers in self._lists:
            first, end = np.searchsorted(numbers, _numbers(task, np.array([0, documents])))
            keep[(numbers[first:end] & _LOW_HALF).astype(np.int64)] = False
        return keep


def _numbers(task: int, places: NDArray[np.int64]) -> UInt64Array:
    return (np.uint64(task) << _HALF) | places.astype(np.uint64)


def _is_in(share: Share, keys: UInt64Array) -> NDArray[np.bool_]:
    mine: NDArray[np.bool_] = ((keys * _MIX) >> _HALF) % np.uint64(share.parts) == np.uint64(share.part)
    return mine


def _candidate_pairs(keys: UInt64Array, numbers: UInt64Array) -> UInt64Array:
    """Return the pairs to compare, `[P, 2]`: each document with the first one and the previous one of the same key."""
    order = np.lexsort((numbers, keys))
    keys, numbers = keys[order], numbers[order]
    is_first = np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)]
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))
    later = np.flatnonzero(~is_first)
    with_first = np.stack([numbers[first[later]], numbers[later]], axis=1)
    later = later[first[later] < later - 1]
    return np.concatenate([with_first, np.stack([numbers[later - 1], numbers[later]], axis=1)])


def _similarities(build_dir: Path, pairs: UInt64Array) -> NDArray[np.float64]:
    numbers, places = np.unique(pairs, return_inverse=True)
    tasks = (numbers >> _HALF).astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], tasks[1:] != tasks[:-1]]))
    signatures = np.empty((len(numbers), HASHES), np.uint16)
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)], strict=True):
        chosen = (numbers[start:end] & _LOW_HALF).astype(np.int64)
        signatures[start:end] = Spool(build_dir / "spool", int(tasks[start])).signatures(chosen)
    a, b = places.reshape(-1, 2).T
    return np.asarray(np.mean(signatures[a] == signatures[b], axis=1))
