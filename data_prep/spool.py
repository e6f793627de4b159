"""The spool: the documents that the reading tasks write to disk for the later tasks. Each task writes these files.

00012.txt   sentences, UTF-8, the documents one after another; the byte after a sentence says what followed it in its
            document: 0A a line feed or the end, 1E a space, 1F nothing
00012.npz   for each document: its end, and 128 bits of a digest of its text
00012.sig   MinHash signatures, band by band: uint16 [BANDS, documents, BAND_ROWS]
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_pld.files import written_aside
from bert_pld.rng import Stream, random_words
from data_prep.dedup.minhash import BAND_ROWS, BANDS, signatures

SPOOL_VERSION = 2
"""Version of these files; a build goes on only with files of this version.

Version 1 did not mark what follows a sentence."""
_BLANKS = {"\n": "\n", "\x1e": " ", "\x1f": ""}
"""Mark after a sentence → what follows it. Cleaned text holds no such control characters."""
_CUT = "\x1d"
_DIGEST_BYTES = 16
SIGNATURE_BATCH_BYTES = 1 << 20


def write_spool(spool_dir: Path, task: int, documents: Iterable[list[str]], signed: bool) -> dict[str, int]:
    """Write the documents of a reading task, and return the number of `documents`, `sentences` and `bytes` written.

    A document is a list of sentences, at least one, each with the space or the line feed before it, so that together
    they are its text. MinHash signatures are written only if `signed` is true. Each file appears only when it is
    complete.
    """
    # A task may have millions of documents, if it reads a whole compressed file, so little is kept of each.
    ends, digests = array("q"), bytearray()
    signed_blocks = [np.empty((0, BANDS, BAND_ROWS), np.uint16)]
    unsigned: list[str] = []
    unsigned_bytes = written = sentence_count = 0
    path = Spool(spool_dir, task).path
    with written_aside(path) as file:
        for pieces in documents:
            sentences = [piece.lstrip(" \n") for piece in pieces]
            text = "\n".join(sentences)
            data = text.encode("utf-8") + b"\n"
            file.write(_with_marks(pieces, sentences).encode("utf-8"))
            written += len(data)
            ends.append(written)
            sentence_count += len(sentences)
            digests += hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
            if signed:
                unsigned.append(text)
                unsigned_bytes += len(data)
                if unsigned_bytes >= SIGNATURE_BATCH_BYTES:
                    signed_blocks.append(signatures(unsigned))
                    unsigned, unsigned_bytes = [], 0
    if signed:
        signed_blocks.append(signatures(unsigned))
        with written_aside(path.with_suffix(".sig")) as file:
            for band in range(BANDS):
                file.write(np.concatenate([block[:, band] for block in signed_blocks]).tobytes())
    words = np.frombuffer(digests, "<u4").reshape(-1, 4)
    with written_aside(path.with_suffix(".npz")) as file:
        np.savez(file, ends=np.array(ends, np.int64), digests=words)
    return {"documents": len(ends), "sentences": sentence_count, "bytes": written}


def _with_marks(pieces: list[str], sentences: list[str]) -> str:
    """Return the sentences, each followed by the mark of what came after it."""
    mark_of = {blank: mark for mark, blank in _BLANKS.items()}
    marks = [mark_of[piece[: len(piece) - len(sentence)]] for piece, sentence in zip(pieces, sentences, strict=True)]
    return "".join(itertools.chain.from_iterable(zip(sentences, [*marks[1:], "\n"], strict=True)))


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a `.npy` file, which appears only when it is complete."""
    with written_aside(path) as file:
        np.save(file, array)


class Spool:
    """The documents of one reading task."""

    def __init__(self, spool_dir: Path, task: int) -> None:
        self.task = task
        self.path = spool_dir / f"{task:05d}.txt"

    @functools.cached_property
    def _index(self) -> dict[str, NDArray[Any]]:
        with np.load(self.path.with_suffix(".npz")) as index:
            return {name: index[name] for name in ("ends", "digests")}

    def __len__(self) -> int:
        return len(self._index["ends"])

    @property
    def digests(self) -> NDArray[np.uint32]:
        """Digest of each document's text: uint32 `[documents, 4]`."""
        return self._index["digests"]

    @functools.cached_property
    def starts(self) -> NDArray[np.int64]:
        """Offset of the first byte of each document."""
        return np.concatenate([[0], self._index["ends"]])[:-1].astype(np.int64)

    @property
    def bytes(self) -> NDArray[np.int64]:
        """Size of each document in bytes."""
        return np.asarray(self._index["ends"] - self.starts)

    def band(self, band: int) -> NDArray[np.uint64]:
        """Return one band of the signatures as a number for each document; 0 excludes a document from comparison."""
        path = self.path.with_suffix(".sig")
        count = path.stat().st_size // (BANDS * 8)
        return np.fromfile(path, np.uint64, count=count, offset=band * count * 8)

    def signatures(self, chosen: NDArray[np.integer[Any]]) -> NDArray[np.uint16]:
        """Return the signatures of at least one document: uint16 `[chosen, BANDS · BAND_ROWS]`."""
        bands = np.memmap(self.path.with_suffix(".sig"), np.uint64, "r").reshape(BANDS, -1)
        return np.ascontiguousarray(bands[:, chosen].T).view(np.uint16)

    def draws(self, seed: int, first: int = 0, end: int | None = None) -> NDArray[np.uint64]:
        """Return a uniform 64-bit number for each document from `first` to before `end`, a function of (seed, text)."""
        c0, c1, c2, c3 = self.digests[first:end].T
        high, low, _, _ = random_words(seed, Stream.SPLIT, c0, c1, c2, c3)
        drawn: NDArray[np.uint64] = (high.astype(np.uint64) << np.uint64(32)) | low
        return drawn

    def read(self, chosen: NDArray[np.integer[Any]], with_blanks: bool = False) -> Iterator[list[str]]:
        """Yield the sentences of the documents at these indices.

        `with_blanks` puts the space or the line feed before a sentence into it; together they are then the text.
        """
        with open(self.path, "rb") as file:
            for document in chosen.tolist():
                start, end = int(self.starts[document]), int(self._index["ends"][document])
                file.seek(start)
                text = file.read(end - start).decode("utf-8")[:-1]
                for mark, blank in _BLANKS.items():
                    text = text.replace(mark, _CUT + blank if with_blanks else _CUT)
                yield text.split(_CUT)
