"""A document on its way from a source to the spool."""

from __future__ import annotations

import dataclasses


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
