"""Pages of a MediaWiki export, found as bytes between `<page>` and `</page>` and parsed one by one."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from xml.etree import ElementTree

LONGEST_PAGE_BYTES = 16 << 20
"""A longer page, all its XML together, is not held in memory; its text would be far above MediaWiki's limit."""
_OPENING, _CLOSING, _END = b"<page>", b"</page>", b"</mediawiki>"
_LONGEST_FOOTER_BYTES = 64
_COMMENTS = re.compile(rb"<!--.*?-->", re.DOTALL)
_WHOLE_NUMBER = re.compile(r"\s*-?\d{1,9}\s*")
_TITLE = re.compile(rb"<title>([^<]{0,1000})</title>")
_ID = re.compile(rb"<id>(\d{1,20})</id>")


class Chunk(NamedTuple):
    """A run of an export's bytes."""

    data: bytes
    owned: bool
    """Whether the pages that begin here are to be read; all owned chunks come before all others."""
    place: int
    """Byte of the file where it lies, for messages."""


@dataclasses.dataclass(frozen=True)
class Page:
    """One page of an export, its latest revision."""

    title: str
    id: str
    namespace: int | None
    """None where the export does not say it."""
    is_redirect: bool
    model: str
    text: str | None
    """None where the page is too long to be read."""


def read_pages(
    chunks: Iterator[Chunk], path: str, from_file_start: bool, locate: Callable[[int, int], str]
) -> Iterator[Page]:
    """The pages whose `<page>` begins in an owned chunk, in order.

    Args:
        chunks: from any byte of the export on; the last one ends the file.
        path: named in errors.
        from_file_start: whether the first chunk begins the file; else what comes before its first `<page>` is
            the rest of an earlier page.
        locate: makes words for messages of (place of a chunk, bytes into it).

    Raises:
        ValueError: not well-formed, not UTF-8, or cut; names the page and its place.
    """
    reader = _Reader(chunks, path, locate)
    closed = from_file_start
    while (start := reader.find_owned_page()) is not None:
        reader.check_gap(start, closed, from_file_start)
        reader.forget(start)
        where = reader.location()
        data, length = reader.take_page(where)
        yield _too_long(data) if length > LONGEST_PAGE_BYTES else _parse(data, path, where)
        closed, from_file_start = True, False
    reader.check_end(closed)


class _Reader:
    """Buffered chunks. Positions are indices into the buffer."""

    def __init__(self, chunks: Iterator[Chunk], path: str, locate: Callable[[int, int], str]) -> None:
        self._chunks, self._path, self._locate = chunks, path, locate
        self._buffer = bytearray()
        self._owned = 0
        """Owned bytes in the buffer."""
        self._places: list[tuple[int, int]] = []
        """(index, place) of the chunks in the buffer."""
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

    def forget(self, count: int) -> None:
        """Drop bytes from the front."""
        del self._buffer[:count]
        self._owned = max(0, self._owned - count)
        self._places = [(index - count, place) for index, place in self._places]
        while len(self._places) > 1 and self._places[1][0] <= 0:
            del self._places[0]

    def location(self, index: int = 0) -> str:
        """Words for a place in the buffer."""
        before = [(start, place) for start, place in self._places if start <= index]
        start, place = before[-1] if before else (0, 0)
        return self._locate(place, index - start)

    def find_owned_page(self) -> int | None:
        """Index of the next `<page>` that begins in an owned chunk."""
        searched = 0
        while True:
            found = self._buffer.find(_OPENING, searched)
            if found >= 0:
                return found if found < self._owned else None
            searched = max(0, len(self._buffer) - len(_OPENING) + 1)
            # A tag that lies across two chunks belongs to the first.
            if len(self._buffer) > self._owned and not self._begins_tag(searched):
                return None
            if searched > LONGEST_PAGE_BYTES:
                self.forget(searched)
                searched = 0
            if not self._more():
                return None

    def _begins_tag(self, searched: int) -> bool:
        tail = self._buffer[searched:]
        return any(
            searched + index < self._owned and _OPENING.startswith(bytes(tail[index:])) for index in range(len(tail))
        )

    def take_page(self, where: str) -> tuple[bytes, int]:
        """The page at the front of the buffer, removed from it, and its length; of a longer one only its head."""
        searched, length, head = len(_OPENING), 0, b""
        while (found := self._buffer.find(_CLOSING, searched)) < 0:
            searched = max(searched, len(self._buffer) - len(_CLOSING) + 1)
            if len(self._buffer) > LONGEST_PAGE_BYTES:
                head = head or bytes(self._buffer[:4096])
                length += searched
                self.forget(searched)
                searched = 0
            if not self._more():
                known = _name(head or bytes(self._buffer[:4096]))
                raise ValueError(
                    f"{self._path}: the XML ends within the page{known} that begins at {where}; is it cut?"
                )
        end = found + len(_CLOSING)
        data = head or bytes(self._buffer[:end])
        length += end
        self.forget(end)
        if length > LONGEST_PAGE_BYTES:
            data = data[:4096]
        elif data.find(_OPENING, 1) > 0:
            raise ValueError(f"{self._path}: the page{_name(data)} that begins at {where} has no </page>")
        return data, length

    def check_gap(self, end: int, closed: bool, from_file_start: bool) -> None:
        """See that nothing but space and comments lies between two pages."""
        start = 0
        if from_file_start:
            return
        if not closed:
            closing = self._buffer.find(_CLOSING, 0, end)
            start = closing + len(_CLOSING) if closing >= 0 else end
        gap = bytes(self._buffer[start:end])
        if gap.strip() and (rest := _COMMENTS.sub(b"", gap).strip()):
            at = self.location(start + gap.find(rest[:1]))
            raise ValueError(f"{self._path}: expected <page> at {at}, found {rest[:40]!r}")

    def check_end(self, closed: bool) -> None:
        """See that a file that was read to its end is whole."""
        whole = closed or len(self._buffer) > _LONGEST_FOOTER_BYTES
        if self._at_end and self._owned and whole and _END not in self._buffer:
            raise ValueError(
                f"{self._path}: the XML ends without </mediawiki>, at {self.location(len(self._buffer))}; is it cut?"
            )


def _parse(data: bytes, path: str, where: str) -> Page:
    try:
        page = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: the page{_name(data)} that begins at {where} {_fault(data, error)}") from None
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
    """What is wrong with a page that expat refused."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as not_utf8:
        return f"is not UTF-8: 0x{data[not_utf8.start]:02x}, {not_utf8.start} bytes into it"
    line, column = error.position
    return f"is not well-formed: {error.msg.split(':')[0]} in its line {line}, byte {column}"


def _too_long(head: bytes) -> Page:
    """A page of which only the head was kept."""
    title, number = _TITLE.search(head), _ID.search(head)
    name = html.unescape(title[1].decode("utf-8", "replace")) if title else ""
    return Page(name, number[1].decode() if number else "", None, False, "wikitext", None)


def _name(data: bytes) -> str:
    """` 'Title' (id 12)` of a page that cannot be parsed, as far as its head says."""
    page = _too_long(data[:4096])
    return (f" {page.title!r}" if page.title else "") + (f" (id {page.id})" if page.id else "")
