"""Duplicates among all documents of a build: exact ones by digest, near ones by MinHash signature.

Of documents that are alike, the first in the order of the sources stays. Three steps, each a list of tasks whose memory
does not depend on the size of the corpus:

1. A task takes a share of all digests and finds those that come more than once; `join_exact` makes one list of them.
2. A task takes some bands of the signatures of what is left (or a share of one band), compares documents that agree in
   a band, and keeps the pairs whose estimated similarity reaches the limit.
3. `cluster_near`: documents linked by such pairs, directly or through others, are one cluster, of which one stays.

A document's number is (reading task · 2³² + place in its spool). Of a whole corpus only the numbers of duplicates are
ever in one memory.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bert_pld.files import write_atomically
from data_prep.dedup.minhash import BANDS, HASHES
from data_prep.spool import Spool, write_array

DEDUPLICATION = ("near", "exact", "none")
KEYS_PER_TASK = 1 << 20
BANDS_PER_TASK = 8
EXACT_NAME, NEAR_NAME = "all_exact.npy", "all_near.npy"
_PAIRS_AT_A_TIME = 1 << 18
_HALF = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_MIX = np.uint64(0x9E3779B97F4A7C15)

UInt64Array = NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class Share:
    """What one task compares: bands [first, end), and of their keys one part in `parts`."""

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
        """The tasks for so many documents: several bands each, or a share of one where a corpus is large."""
        parts = max(-(-documents // KEYS_PER_TASK), 1)
        bands = min(max(KEYS_PER_TASK // max(documents, 1), 1), BANDS_PER_TASK)
        return cls(
            exact=[Share(0, 0, part, parts) for part in range(parts)],
            near=[Share(b, min(b + bands, BANDS), p, parts) for b in range(0, BANDS, bands) for p in range(parts)],
        )

    def write(self, build_dir: Path) -> None:
        """Keep them for the tasks."""
        write_atomically(build_dir / "comparisons.json", json.dumps(dataclasses.asdict(self)) + "\n")

    @classmethod
    def read(cls, build_dir: Path) -> Comparisons:
        """The comparisons of a build folder."""
        content = json.loads((build_dir / "comparisons.json").read_text(encoding="utf-8"))
        return cls(*([Share(**share) for share in content[name]] for name in ("exact", "near")))


def find_exact(build_dir: Path, task: int, share: Share, spools: int) -> int:
    """Write the documents of this share that repeat an earlier one; how many there are."""
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
    """Make one list of what all tasks of step 1 found; how many documents it holds."""
    folder = build_dir / "duplicates"
    found = np.sort(np.concatenate([np.load(folder / f"exact_{task:05d}.npy") for task in range(tasks)]))
    write_array(folder / EXACT_NAME, found)
    return len(found)


def find_near(build_dir: Path, task: int, share: Share, spools: int, similarity: float) -> int:
    """Write the pairs of this share that are alike, `[P, 2]` document numbers; how many pairs were compared."""
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
        candidates = _agreeing(np.concatenate(keys), np.concatenate(numbers))
        compared += len(candidates)
        for first in range(0, len(candidates), _PAIRS_AT_A_TIME):
            block = candidates[first : first + _PAIRS_AT_A_TIME]
            pairs.append(block[_similarities(build_dir, block) >= similarity])
    write_array(build_dir / "duplicates" / f"near_{task:05d}.npy", np.unique(np.concatenate(pairs), axis=0))
    return compared


def cluster_near(build_dir: Path, tasks: int) -> int:
    """Join all pairs into clusters and list all but the first of each; how many documents the list holds."""
    from scipy.sparse import coo_array  # here: workers need not wait for its import
    from scipy.sparse.csgraph import connected_components

    folder = build_dir / "duplicates"
    pairs = np.concatenate([np.load(folder / f"near_{task:05d}.npy") for task in range(tasks)])
    members, places = np.unique(pairs, return_inverse=True)
    links = places.reshape(-1, 2)
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(len(members), len(members)))
    labels = connected_components(graph, directed=False)[1] if len(members) else np.empty(0, np.int32)
    _, firsts = np.unique(labels, return_index=True)  # members ascend: where a label first stands is its lowest number
    found = np.delete(members, firsts)
    write_array(folder / NEAR_NAME, found)
    return len(found)


class Duplicates:
    """The documents to leave out, looked up on disk."""

    def __init__(self, build_dir: Path) -> None:
        paths = [build_dir / "duplicates" / name for name in (EXACT_NAME, NEAR_NAME)]
        self._lists = [np.load(path, mmap_mode="r") for path in paths if path.is_file()]

    def kept(self, task: int, documents: int) -> NDArray[np.bool_]:
        """Which of a spool's documents stay: bool `[documents]`."""
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


def _agreeing(keys: UInt64Array, numbers: UInt64Array) -> UInt64Array:
    """Pairs to compare, `[P, 2]`: of documents with equal keys each with the first of them and with the one before."""
    order = np.lexsort((numbers, keys))
    keys, numbers = keys[order], numbers[order]
    is_first = np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)]
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))
    later = np.flatnonzero(~is_first)
    with_first = np.stack([numbers[first[later]], numbers[later]], axis=1)
    later = later[first[later] < later - 1]
    return np.concatenate([with_first, np.stack([numbers[later - 1], numbers[later]], axis=1)])


def _similarities(build_dir: Path, pairs: UInt64Array) -> NDArray[np.float64]:
    """The estimated Jaccard similarity of each pair."""
    numbers, places = np.unique(pairs, return_inverse=True)
    tasks = (numbers >> _HALF).astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], tasks[1:] != tasks[:-1]]))
    signed = np.empty((len(numbers), HASHES), np.uint16)
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)], strict=True):
        chosen = (numbers[start:end] & _LOW_HALF).astype(np.int64)
        signed[start:end] = Spool(build_dir / "spool", int(tasks[start])).signatures(chosen)
    a, b = places.reshape(-1, 2).T
    return np.asarray(np.mean(signed[a] == signed[b], axis=1))
