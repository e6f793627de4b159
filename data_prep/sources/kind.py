"""What a kind of source is: it lists pieces, and reads each piece as documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True)
class Document:
    """One document as its source gives it."""

    text: str
    """Paragraphs separated by a line feed; a sentence never crosses one."""
    id: str
    """Names the document in messages: file and position, or the source's own id."""
    source: str
    """The kind that read it."""
    title: str = ""
    dropped: str | None = None
    """Why the source itself leaves it out, in a few words (`redirect`, `no text`); None where it is to be read."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a source that is read by itself: bytes [start, end) of a file, or an embedded corpus."""

    kind: str
    path: str
    start: int
    end: int
    selection: str = ""
    """What of the file is meant where a range of bytes cannot say it; `end - start` is then its size, estimated."""

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start


@dataclasses.dataclass(frozen=True)
class SourceKind:
    """One kind of source: how to find its pieces and how to read one."""

    name: str
    summary: str
    example: str
    list_pieces: Callable[[str], list[Piece]]
    """From the place the user gave to pieces in a fixed order; raises ValueError where there are none."""
    read_piece: Callable[[Piece], Iterator[Document]]
    needs_place: bool = True
    licence: str = "not recorded: as whoever holds the rights in the text allows"
    """Of the text, for the data card."""
