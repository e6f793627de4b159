"""Reads the site information of a MediaWiki export: the names of the namespaces, which depend on the language."""

from __future__ import annotations

import dataclasses
import re
from xml.etree import ElementTree

ARTICLES, FILES, CATEGORIES, MEDIA, SPECIAL = 0, 6, 14, -2, -1
CANONICAL_NAMES = {
    "media": MEDIA, "special": SPECIAL, "talk": 1, "user": 2, "user talk": 3, "project": 4, "project talk": 5,
    "wikipedia": 4, "wikipedia talk": 5, "file": FILES, "image": FILES, "file talk": 7, "image talk": 7, "mediawiki": 8,
    "mediawiki talk": 9, "template": 10, "template talk": 11, "help": 12, "help talk": 13, "category": CATEGORIES,
    "category talk": 15, "portal": 100, "portal talk": 101, "book": 108, "draft": 118, "timedtext": 710, "module": 828,
}  # fmt: skip
"""English names, which every wiki accepts besides its own."""
HEAD_BYTES = 1 << 20
"""Bytes at the start of an export that contain the root element and the site information."""

_PROLOG = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:\s+|<\?[^>]{0,500}\?>|<!--.{0,10000}?-->|<!DOCTYPE[^>]{0,500}>)*", re.DOTALL
)
_ENCODING = re.compile(rb"<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]+)[\"']")
_ROOT = re.compile(rb"<mediawiki(?=[\s>])[^>]{0,2000}>")
_ELEMENT = re.compile(rb"<([A-Za-z_][\w.:-]*)")


@dataclasses.dataclass(frozen=True)
class SiteInfo:
    """Namespaces of a wiki by name (lower case, spaces): its own names and the canonical ones."""

    namespaces: dict[str, int]

    def split(self, title: str) -> tuple[int, str]:
        """Split a full title into (namespace, rest); a prefix that is not a namespace belongs to the title."""
        prefix, colon, rest = title.partition(":")
        if colon:
            key = self.namespaces.get(" ".join(prefix.replace("_", " ").split()).lower())
            if key is not None:
                return key, rest.strip()
        return ARTICLES, title


def read_site_info(head: bytes, path: str) -> SiteInfo:
    """Check the beginning of an export and read its `<siteinfo>`; without one, only the canonical names are known.

    `head` is the first 1 MiB of the XML, or all of it if it is shorter.
    """
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path}: XML in UTF-16, expected UTF-8; convert it, for example with iconv -t UTF-8")
    prolog = _PROLOG.match(head)
    assert prolog is not None
    if (encoding := _ENCODING.match(head.removeprefix(b"\xef\xbb\xbf"))) and encoding[1].lower() not in (
        b"utf-8", b"utf8", b"us-ascii"
    ):  # fmt: skip
        raise ValueError(f"{path}: XML in {encoding[1].decode()}, expected UTF-8")
    start = prolog.end()
    root = _ROOT.match(head, start)
    if root is None:
        element = _ELEMENT.match(head, start)
        if element is None:
            raise ValueError(
                f"{path}: not XML: byte {start} begins {head[start : start + 20]!r}; expected a MediaWiki export,"
                " .xml or .xml.bz2"
            )
        raise ValueError(
            f"{path}: not a MediaWiki export: the root element is <{element[1].decode()}>, expected <mediawiki>"
            + _fault_of_fragment(head, start)
        )
    first_page = head.find(b"<page>", root.end())
    opening = head.find(b"<siteinfo>", root.end(), first_page if first_page >= 0 else len(head))
    if opening < 0:
        return SiteInfo(dict(CANONICAL_NAMES))
    closing = head.find(b"</siteinfo>", opening)
    try:
        element_tree = ElementTree.fromstring(head[opening : closing + len(b"</siteinfo>")] if closing >= 0 else b"")
    except ElementTree.ParseError as error:
        raise ValueError(
            f"{path}: the <siteinfo> at byte {opening} is truncated or not well-formed ({error})"
        ) from None
    namespaces = dict(CANONICAL_NAMES)
    for entry in element_tree.iterfind("./namespaces/namespace"):
        key = entry.get("key", "")
        if not re.fullmatch(r"-?\d{1,9}", key):
            raise ValueError(
                f"{path}: the <siteinfo> at byte {opening} has a namespace with key {key[:20]!r}, which is not a number"
            )
        if name := (entry.text or "").strip():
            namespaces[name.replace("_", " ").lower()] = int(key)
    return SiteInfo(namespaces)


def _fault_of_fragment(head: bytes, start: int) -> str:
    """Return where a fragment of an export is not well-formed, as the end of a message, or an empty string."""
    if len(head) == HEAD_BYTES or not head.startswith(b"<page>", start):
        return ""
    try:
        ElementTree.fromstring(b"<fragment>" + head[start:] + b"</fragment>")
    except ElementTree.ParseError as error:
        line, column = error.position
        byte = start + sum(len(text) + 1 for text in head[start:].split(b"\n")[: line - 1]) + column
        byte -= len("<fragment>") if line == 1 else 0
        return f"; not well-formed: {error.msg.split(':')[0]} at byte {byte}: {head[byte : byte + 20]!r}"
    return ""
