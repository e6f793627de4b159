"""The interface of a source kind: it lists pieces, and reads each piece as documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from data_prep.text.left_out import LeftOut

NO_TEXT = "no text"
"""Reason to drop a document without text."""
WIKIPEDIA_LICENCE = "CC BY-SA (Wikipedia's contributors)"


@dataclasses.dataclass(frozen=True)
class Document:
    """One document as its source yields it."""

    text: str
    """Paragraphs separated by line feeds; a sentence never crosses one."""
    id: str
    """Identifies the document in messages: file and position, or the source's own id."""
    title: str = ""
    dropped: str | None = None
    """Reason for which the source drops the document (`redirect`, `no text`); None keeps it."""
    fault: Callable[[], str] | None = None
    """Returns what is wrong with a bad row, with file and place, in one line; None for any other document.

    A build that stops at the row calls it; one that skips and counts bad rows does not. The call may be slow: the
    number of a line may take a pass over the file up to it."""
    left_out: LeftOut | None = None
    """What the source left out of the text (headings, references, …), by reason."""


def bad_row(reason: str, name: str, fault: Callable[[], str]) -> Document:
    """Return the document that stands for a row that cannot be read; see `Document.fault`."""
    return Document("", name, dropped=f"bad row: {reason}", fault=fault)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a source that is read independently: bytes [start, end) of a file."""

    kind: str
    path: str
    start: int
    end: int
    selection: str = ""
    """Selects a part of the file where a byte range cannot; `end - start` is then the estimated size."""

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start


@dataclasses.dataclass(frozen=True)
class SourceKind:
    """One kind of source: how to list its pieces and how to read one."""

    name: str
    summary: str
    example: str
    list_pieces: Callable[[str], list[Piece]]
    """Returns the pieces of the user's path in a fixed order; raises ValueError if a file cannot be used."""
    read_piece: Callable[[Piece], Iterator[Document]]
    """Yields the documents of a piece; raises ValueError, with file and place, if the file is damaged."""
    needs_path: bool = True
    licence: str = "not recorded: depends on the rights holder of the text"
    """Licence of the text, for the data card."""
