"""The recipe of a reading task: a short list of datatrove steps, each of which takes and yields documents.

datatrove's own readers, filters and formatters are `PipelineStep`s too, so any of them can be added to the list. A step
counts the documents that it drops under `dropped_<reason>`, as datatrove's filters do, and what it leaves out of its
documents in `left_out`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document as DatatroveDocument
from datatrove.pipeline.base import PipelineStep

from data_prep.plan import BuildArguments
from data_prep.sources import KINDS
from data_prep.sources.kind import Piece
from data_prep.spool import write_spool
from data_prep.text.clean import clean_text, drop_reason
from data_prep.text.language import language_drop_reason
from data_prep.text.left_out import LeftOut, count_characters
from data_prep.text.scripts import count_changed_by_accents
from data_prep.text.sentences import has_word, split_pieces

_DROPPED = "dropped_"
WITHOUT_WORDS = "piece without a letter or digit"


def reading_recipe(arguments: BuildArguments, pieces: list[Piece], spool_dir: Path, task: int) -> list[PipelineStep]:
    """Return the steps from pieces of the sources to a spool."""
    keep = arguments.keep_languages
    return [
        ReadPieces(pieces, arguments.bad_rows),
        Normalise(),
        Drop("unfit", drop_reason),
        *([Drop("languages", functools.partial(language_drop_reason, keep=keep))] if keep else []),
        SplitSentences(arguments.language),
        WriteSpool(spool_dir, task, signed=arguments.deduplicate == "near"),
    ]


def run_recipe(steps: list[PipelineStep]) -> Counter[str]:
    """Run the steps, and return the number of dropped documents by reason."""
    documents: Any = None
    for step in steps:
        documents = step(documents)
    for _ in documents:
        pass
    dropped: Counter[str] = Counter()
    for step in steps:
        for label, value in step.stats.stats.items():
            if label.startswith(_DROPPED):
                dropped[label.removeprefix(_DROPPED)] += int(value.total)
    return dropped


def left_out_by(steps: list[PipelineStep]) -> LeftOut:
    """Return the text that the steps have left out, in dropped documents and in others."""
    total = LeftOut()
    for step in steps:
        total.update(getattr(step, "left_out", LeftOut()))
    return total


class ReadPieces(PipelineStep):
    """Reads the documents of pieces, and counts those that their source drops; a bad row stops it, or is skipped."""

    type = "READER"
    name = "pieces"

    def __init__(self, pieces: list[Piece], bad_rows: str = "stop") -> None:
        super().__init__()
        self.pieces, self.bad_rows = pieces, bad_rows
        self.left_out = LeftOut()

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[DatatroveDocument]:
        """Yield the documents; `data` is ignored."""
        for piece in self.pieces:
            for document in KINDS[piece.kind].read_piece(piece):
                if document.left_out is not None:
                    self.left_out.update(document.left_out)
                if document.fault is not None and self.bad_rows == "stop":
                    raise ValueError(f"{document.fault()} (--bad_rows skip leaves such rows out, and counts them)")
                if document.dropped:
                    self.stat_update(_DROPPED + document.dropped)
                else:
                    yield DatatroveDocument(document.text, document.id, metadata={"title": document.title})


class Normalise(PipelineStep):
    """Normalises characters and white space; see `clean_text`."""

    type = "FORMATTER"
    name = "normalise"

    def run(self, data: Iterable[DatatroveDocument], rank: int = 0, world_size: int = 1) -> Iterator[DatatroveDocument]:
        """Yield each document with its text normalised."""
        for document in data:
            document.text = clean_text(document.text)
            yield document


class Drop(PipelineStep):
    """Drops the documents for which `reason_of` returns a reason, and counts them by it."""

    type = "FILTER"

    def __init__(self, name: str, reason_of: Callable[[str], str | None]) -> None:
        self.name, self.reason_of = name, reason_of
        self.left_out = LeftOut()
        super().__init__()

    def run(self, data: Iterable[DatatroveDocument], rank: int = 0, world_size: int = 1) -> Iterator[DatatroveDocument]:
        """Yield the documents that are kept."""
        for document in data:
            if reason := self.reason_of(document.text):
                self.stat_update(_DROPPED + reason)
                if document.text:
                    self.left_out.add(f"document: {reason}", document.text)
            else:
                yield document


class SplitSentences(PipelineStep):
    """Stores the sentences of a document in its metadata under `sentences`, each with the space or the line feed before
    it; counts the pieces without words."""

    type = "FORMATTER"
    name = "sentences"

    def __init__(self, language: str) -> None:
        super().__init__()
        self.language = language
        self.left_out = LeftOut()

    def run(self, data: Iterable[DatatroveDocument], rank: int = 0, world_size: int = 1) -> Iterator[DatatroveDocument]:
        """Yield each document with its sentences."""
        for document in data:
            pieces = split_pieces(document.text, self.language)
            sentences: list[str] = []
            end, blanks = 0, ""
            for piece in pieces:
                start = document.text.index(piece, end)
                blanks += document.text[end:start]
                end = start + len(piece)
                if has_word(piece):
                    blank = "\n" if "\n" in blanks else " " if blanks else ""
                    sentences.append((blank if sentences else "") + piece)
                    blanks = ""
                else:
                    self.left_out.add(WITHOUT_WORDS, piece)
            document.metadata["sentences"] = sentences
            yield document


class WriteSpool(PipelineStep):
    """Writes the sentences of all documents to a spool; `counts` holds the totals."""

    type = "WRITER"
    name = "spool"

    def __init__(self, spool_dir: Path, task: int, signed: bool) -> None:
        super().__init__()
        self.spool_dir, self.task, self.signed = spool_dir, task, signed
        self.counts: dict[str, int] = {}
        self.characters = self.changed_by_accents = 0

    def run(self, data: Iterable[DatatroveDocument], rank: int = 0, world_size: int = 1) -> Iterator[DatatroveDocument]:
        """Write all documents; nothing is yielded."""

        def sentences() -> Iterator[list[str]]:
            for document in data:
                self.characters += sum(map(count_characters, document.metadata["sentences"]))
                self.changed_by_accents += count_changed_by_accents(document.text)
                yield document.metadata["sentences"]

        written = write_spool(self.spool_dir, self.task, sentences(), self.signed)
        self.counts = {**written, "characters": self.characters, "changed_by_accents": self.changed_by_accents}
        yield from ()
