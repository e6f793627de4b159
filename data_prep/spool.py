"""The spool: what the reading tasks leave on disk for the writing tasks. One pair of files a task.

`00012.txt` holds sentences, one a line, UTF-8, documents one after another; `00012.npz` says where each document ends
and how many sentences it has, and carries 128 bits of its content's digest, by which it is assigned to a split.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_pld.counter_rng import Stream, random_words

_DIGEST_BYTES = 16


def text_path(spool_dir: Path, task: int) -> Path:
    """The sentences of a reading task."""
    return spool_dir / f"{task:05d}.txt"


def write_spool(spool_dir: Path, task: int, documents: Iterable[list[str]]) -> dict[str, int]:
    """Write the documents of a task, each a list of sentences without line feeds; both files appear only whole.

    Returns:
        `documents`, `sentences` and `bytes` written.
    """
    ends, counts, digests = [], [], []
    path = text_path(spool_dir, task)
    aside = path.with_name(f".{path.name}.partial")
    written = 0
    with open(aside, "wb") as file:
        for sentences in documents:
            data = ("\n".join(sentences) + "\n").encode("utf-8")
            file.write(data)
            written += len(data)
            ends.append(written)
            counts.append(len(sentences))
            digests.append(hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest())
    words = np.frombuffer(b"".join(digests), "<u4").reshape(-1, 4)
    index = path.with_suffix(".npz")
    index_aside = index.with_name(f".{index.name}.partial")
    with open(index_aside, "wb") as file:
        np.savez(file, ends=np.array(ends, np.int64), sentences=np.array(counts, np.int64), digests=words)
    os.replace(aside, path)
    os.replace(index_aside, index)
    return {"documents": len(ends), "sentences": sum(counts), "bytes": written}


class Spool:
    """The documents of one reading task."""

    def __init__(self, spool_dir: Path, task: int) -> None:
        self.path = text_path(spool_dir, task)
        with np.load(self.path.with_suffix(".npz")) as index:
            ends: NDArray[np.int64] = index["ends"]
            self.sentences: NDArray[np.int64] = index["sentences"]
            self.digests: NDArray[np.uint32] = index["digests"]
        self.starts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if len(ends) else ends
        self.bytes = ends - self.starts

    def draws(self, seed: int) -> NDArray[np.uint64]:
        """A uniform 64-bit number for each document, a function of (seed, content) alone: equal texts draw equally."""
        c0, c1, c2, c3 = self.digests.T
        high, low, _, _ = random_words(seed, Stream.SPLIT, c0, c1, c2, c3)
        drawn: NDArray[np.uint64] = (high.astype(np.uint64) << np.uint64(32)) | low
        return drawn

    def read(self, chosen: NDArray[Any]) -> Iterator[list[str]]:
        """The sentences of the documents at these indices."""
        with open(self.path, "rb") as file:
            for document in chosen.tolist():
                file.seek(int(self.starts[document]))
                yield file.read(int(self.bytes[document])).decode("utf-8").split("\n")[:-1]
