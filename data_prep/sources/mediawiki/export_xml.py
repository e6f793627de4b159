"""Reads the pages of a MediaWiki export: the bytes from `<page>` to `</page>`, parsed one page at a time."""

from __future__ import annotations

import dataclasses
import functools
import html
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from xml.etree import ElementTree

LONGEST_PAGE_BYTES = 16 << 20
"""Longer pages are not held in memory; the text of such a page would be far above MediaWiki's limit."""
_OPENING, _CLOSING, _END = b"<page>", b"</page>", b"</mediawiki>"
_LONGEST_FOOTER_BYTES = 64
_HEAD_BYTES = 4096
"""Of a page that is too long or not sound, only so much is searched for its title and id."""
_COMMENTS = re.compile(rb"<!--.*?-->", re.DOTALL)
_WHOLE_NUMBER = re.compile(r"\s*-?\d{1,9}\s*")
_TITLE = re.compile(rb"<title>([^<]{0,1000})</title>")
_ID = re.compile(rb"<id>(\d{1,20})</id>")


class Chunk(NamedTuple):
    """Consecutive bytes of an export."""

    data: bytes
    owned: bool
    """Whether the pages that begin in this chunk belong to the piece; owned chunks come before all others."""
    place: int
    """Byte of the file where the chunk begins, for messages."""


@dataclasses.dataclass(frozen=True)
class Page:
    """The latest revision of a page of an export."""

    title: str
    id: str
    namespace: int | None
    """None if the export does not contain it."""
    is_redirect: bool
    model: str
    text: str | None
    """None if the page is too long."""
    fault: Callable[[], str] | None = None
    """Tells what is wrong with a page that cannot be parsed, with file and place."""


def read_pages(
    chunks: Iterator[Chunk], path: str, from_file_start: bool, locate: Callable[[int, int], str]
) -> Iterator[Page]:
    """Yield the pages whose `<page>` begins in an owned chunk, in order.

    The chunks are the bytes of the export from any byte on to the end of the file. Unless they begin the file, what is
    before the first `<page>` is the rest of an earlier page. For messages, `locate` describes (place of a chunk, offset
    in the chunk) in words.
    """
    reader = _Reader(chunks, path, locate)
    closed = from_file_start
    while (start := reader.find_owned_page()) is not None:
        reader.check_gap(start, closed, from_file_start)
        reader.drop(start)
        # In plain XML, a place in words takes a pass over the file up to it; only messages need it.
        where = functools.partial(locate, *reader.place())
        data, length = reader.pop_page(where)
        yield _page_of_head(data) if length > LONGEST_PAGE_BYTES else _parse(data, path, where)
        closed, from_file_start = True, False
    reader.check_end(closed)


class _Reader:
    """A buffer of chunks. Positions are indices into the buffer."""

    def __init__(self, chunks: Iterator[Chunk], path: str, locate: Callable[[int, int], str]) -> None:
        self._chunks, self._path, self._locate = chunks, path, locate
        self._buffer = bytearray()
        self._owned = 0
        """Number of owned bytes in the buffer."""
        self._places: list[tuple[int, int]] = []
        """(index, place) of each chunk in the buffer."""
        self._at_end = False

    def _more(self) -> bool:
        chunk = None if self._at_end else next(self._chunks, None)
        if chunk is None:
            self._at_end = True
            return False
        self._places.append((len(self._buffer), chunk.place))
        self._buffer += chunk.data
        if chunk.owned:
            self._owned = len(self._buffer)
        return True

    def drop(self, count: int) -> None:
        del self._buffer[:count]
        self._owned = max(0, self._owned - count)
        self._places = [(index - count, place) for index, place in self._places]
        while len(self._places) > 1 and self._places[1][0] <= 0:
            del self._places[0]

    def place(self, index: int = 0) -> tuple[int, int]:
        """Return the place of the chunk that holds an index, and the offset in the chunk."""
        before = [(start, place) for start, place in self._places if start <= index]
        start, place = before[-1] if before else (0, 0)
        return place, index - start

    def location(self, index: int) -> str:
        return self._locate(*self.place(index))

    def find_owned_page(self) -> int | None:
        """Return the index of the next `<page>` that begins in an owned chunk."""
        searched = 0
        while True:
            found = self._buffer.find(_OPENING, searched)
            if found >= 0:
                return found if found < self._owned else None
            searched = max(0, len(self._buffer) - len(_OPENING) + 1)
            # A tag across two chunks belongs to the first chunk.
            if len(self._buffer) > self._owned and not self._begins_tag(searched):
                return None
            if searched > LONGEST_PAGE_BYTES:
                self.drop(searched)
                searched = 0
            if not self._more():
                return None

    def _begins_tag(self, searched: int) -> bool:
        tail = self._buffer[searched:]
        return any(
            searched + index < self._owned and _OPENING.startswith(bytes(tail[index:])) for index in range(len(tail))
        )

    def pop_page(self, where: Callable[[], str]) -> tuple[bytes, int]:
        """Remove the page at the front of the buffer; return it (only the head of a long page) and its length."""
        searched, length, head = len(_OPENING), 0, b""
        while (found := self._buffer.find(_CLOSING, searched)) < 0:
            searched = max(searched, len(self._buffer) - len(_CLOSING) + 1)
            if len(self._buffer) > LONGEST_PAGE_BYTES:
                head = head or bytes(self._buffer[:_HEAD_BYTES])
                length += searched
                self.drop(searched)
                searched = 0
            if not self._more():
                known = _name(head or bytes(self._buffer[:_HEAD_BYTES]))
                raise ValueError(
                    f"{self._path}: the XML ends within the page{known} that begins at {where()};"
                    " is the file truncated?"
                )
        end = found + len(_CLOSING)
        data = head or bytes(self._buffer[:end])
        length += end
        self.drop(end)
        if length > LONGEST_PAGE_BYTES:
            data = data[:_HEAD_BYTES]
        elif data.find(_OPENING, 1) > 0:
            raise ValueError(f"{self._path}: the page{_name(data)} that begins at {where()} has no </page>")
        return data, length

    def check_gap(self, end: int, closed: bool, from_file_start: bool) -> None:
        """Check that there are only white space and comments between two pages."""
        start = 0
        if from_file_start:
            return
        if not closed:
            closing = self._buffer.find(_CLOSING, 0, end)
            start = closing + len(_CLOSING) if closing >= 0 else end
        gap = bytes(self._buffer[start:end])
        commented, closing_mark, after = gap.rpartition(b"-->")
        if gap.strip() and (rest := _COMMENTS.sub(b"", commented + closing_mark).strip() or after.strip()):
            at = self.location(start + gap.find(rest[:1]))
            raise ValueError(f"{self._path}: expected <page> at {at}, found {rest[:40]!r}")

    def check_end(self, closed: bool) -> None:
        """Check that a file that was read to its end is complete."""
        whole = closed or len(self._buffer) > _LONGEST_FOOTER_BYTES
        if self._at_end and self._owned and whole and _END not in self._buffer:
            raise ValueError(
                f"{self._path}: the XML ends without </mediawiki>, at {self.location(len(self._buffer))};"
                " is the file truncated?"
            )


def _parse(data: bytes, path: str, where: Callable[[], str]) -> Page:
    try:
        page = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        name, fault = _name(data), _fault(data, error)
        known = _page_of_head(data[:_HEAD_BYTES])
        return dataclasses.replace(known, fault=lambda: f"{path}: the page{name} that begins at {where()} {fault}")
    revisions = page.findall("revision")
    revision = revisions[-1] if revisions else None
    namespace = page.findtext("ns")
    return Page(
        title=(page.findtext("title") or "").strip(),
        id=(page.findtext("id") or "").strip(),
        namespace=int(namespace) if namespace and _WHOLE_NUMBER.fullmatch(namespace) else None,
        is_redirect=page.find("redirect") is not None,
        model=(revision.findtext("model") if revision is not None else None) or "wikitext",
        text=(revision.findtext("text") if revision is not None else None) or "",
    )


def _fault(data: bytes, error: ElementTree.ParseError) -> str:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as not_utf8:
        return f"is not UTF-8: 0x{data[not_utf8.start]:02x}, at byte {not_utf8.start} of the page"
    line, column = error.position
    return f"is not well-formed: {error.msg.split(':')[0]} in line {line}, byte {column} of the page"


def _page_of_head(head: bytes) -> Page:
    """Return a page of which only the head is known."""
    title, number = _TITLE.search(head), _ID.search(head)
    name = html.unescape(title[1].decode("utf-8", "replace")) if title else ""
    return Page(name, number[1].decode() if number else "", None, False, "wikitext", None)


def _name(data: bytes) -> str:
    """Return ` 'Title' (id 12)` of a page that cannot be parsed, as far as its head contains them."""
    page = _page_of_head(data[:_HEAD_BYTES])
    return (f" {page.title!r}" if page.title else "") + (f" (id {page.id})" if page.id else "")
