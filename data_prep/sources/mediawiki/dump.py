"""Kind `wikipedia-dump`: MediaWiki's export XML, `.xml` or `.xml.bz2` (one stream or many).

A piece is a range of bytes of the file on disk. It consists of the pages whose `<page>` begins in the range, or, in a
bzip2 file, in a block that begins in the range. Pieces therefore need no index, listing them reads only the head of
each file, and every piece size gives the same documents.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.sources.compression import DamagedError, beginning, compression_of, decompressed
from data_prep.sources.finding import Names, find_files, tell_passed_over
from data_prep.sources.kind import NO_TEXT, WIKIPEDIA_LICENCE, Document, Piece, SourceKind, bad_row
from data_prep.sources.local_files import line_of, whole_files
from data_prep.sources.mediawiki.article_prose import LIST
from data_prep.sources.mediawiki.bz2_blocks import SIGNATURE, read_blocks
from data_prep.sources.mediawiki.export_xml import Chunk, Page, read_pages
from data_prep.sources.mediawiki.site_info import ARTICLES, HEAD_BYTES, SiteInfo, read_site_info
from data_prep.sources.mediawiki.wikitext import article_of_wikitext

XML_PIECE_BYTES = 16 << 20
BZ2_PIECE_BYTES = 4 << 20
"""About 16 MB of XML; a piece decodes one more block than its own."""
LONGEST_TEXT_BYTES = (2 << 20) + (64 << 10)
"""MediaWiki's limit for a page (`$wgMaxArticleSize`, 2,048 kB) with a margin."""
CHUNK_BYTES = 1 << 20

OTHER_NAMESPACE = "not in the article namespace"
REDIRECT = "redirect"
NOT_WIKITEXT = "not wikitext"
TOO_LONG = "longer than 2 MiB"
DISAMBIGUATION = "disambiguation page"

_DUMP_NAMES = Names(
    re.compile(r"\.xml(?:-p\d+p\d+)?(?:\.(?:bz2|gz|xz|zst))?$", re.IGNORECASE), " ending in .xml or .xml.bz2"
)
_INDEX_NAME = re.compile(r"-index\d*\.txt", re.IGNORECASE)
_SAME_CONTENT = re.compile(r"-multistream(?=\d*\.xml)|\.(?:bz2|gz|xz|zst)$", re.IGNORECASE)
_REDIRECT = re.compile(r"\s*#\w{2,30}\s{0,9}:?\s{0,9}\[\[")
"""A redirect in any language, for exports that do not mark redirects."""


def list_pieces(where: str, piece_bytes: int | None = None) -> list[Piece]:
    """Cut the dumps of a folder (recursively), a file or a glob into ranges of bytes; index files are left out.

    A file that is not a MediaWiki export, and two files with the same pages, are a ValueError.
    """
    paths = find_files(where, _DUMP_NAMES)
    if len(paths) > 1:
        tell_passed_over(where, [path for path in paths if _INDEX_NAME.search(path.name)], Path())
        paths = [path for path in paths if not _INDEX_NAME.search(path.name)]
    names: dict[str, Path] = {}
    for path in paths:
        other = names.setdefault(_SAME_CONTENT.sub("", str(path)), path)
        if other != path:
            raise ValueError(f"{where}: {other.name} and {path.name} hold the same pages; keep only one of them")
    pieces = []
    for path in paths:
        _site_info(str(path))
        if compression_of(path) not in (None, "bzip2"):
            pieces += whole_files(KIND.name, [path])
            continue
        size = path.stat().st_size
        step = piece_bytes or (BZ2_PIECE_BYTES if _is_bz2(path) else XML_PIECE_BYTES)
        pieces += [Piece(KIND.name, str(path), start, min(start + step, size)) for start in range(0, size, step)]
    return pieces


def read_piece(piece: Piece) -> Iterator[Document]:
    """Yield the articles of a piece as prose, and other pages with the reason to drop them."""
    site = _site_info(piece.path)
    if _is_bz2(piece.path):
        blocks = read_blocks(piece.path, piece.start)
        chunks: Iterator[Chunk] = (Chunk(block.data, block.offset < piece.end, block.offset) for block in blocks)
        locate = _bz2_place
    elif compression_of(piece.path) is not None:
        chunks, locate = _decompressed_chunks(piece.path), _decompressed_place
    else:
        chunks, locate = _xml_chunks(piece), functools.partial(_xml_place, piece.path)
    for page in read_pages(chunks, piece.path, piece.start == 0, locate):
        if page.fault is not None:
            yield bad_row("page not well-formed", page.id, page.fault)
            continue
        reason = _why_no_article(page, site)
        if reason is not None:
            yield Document("", page.id, page.title, dropped=reason)
            continue
        assert page.text is not None
        article = article_of_wikitext(page.text, page.title, site)
        reason = DISAMBIGUATION if article.is_disambiguation else LIST if article.is_list else None
        yield Document("" if reason else article.prose, page.id, page.title, reason, left_out=article.left_out)


def _why_no_article(page: Page, site: SiteInfo) -> str | None:
    """Return the reason to drop a page before its text is converted, or None."""
    namespace = page.namespace if page.namespace is not None else site.split(page.title)[0]
    if namespace != ARTICLES:
        return OTHER_NAMESPACE
    if page.text is None or len(page.text) > LONGEST_TEXT_BYTES or len(page.text.encode()) > LONGEST_TEXT_BYTES:
        return TOO_LONG
    if page.is_redirect or (page.text.lstrip().startswith("#") and _REDIRECT.match(page.text)):
        return REDIRECT
    if page.model != "wikitext":
        return NOT_WIKITEXT
    return None if page.text.strip() else NO_TEXT


def _xml_chunks(piece: Piece) -> Iterator[Chunk]:
    with open(piece.path, "rb") as file:
        position = piece.start
        while True:
            file.seek(position)
            owned = position < piece.end
            data = file.read(min(CHUNK_BYTES, piece.end - position) if owned else CHUNK_BYTES)
            if not data:
                if owned:
                    raise ValueError(f"{piece.path}: became shorter while it was being read")
                return
            yield Chunk(data, owned, position)
            position += len(data)


def _decompressed_chunks(path: str) -> Iterator[Chunk]:
    position = 0
    try:
        for data in decompressed(path):
            yield Chunk(data, True, position)
            position += len(data)
    except DamagedError as error:
        raise ValueError(f"{path}: damaged or truncated after byte {position} of its content: {error}") from None


def _decompressed_place(place: int, offset: int) -> str:
    return f"byte {place + offset} of the content"


def _xml_place(path: str, place: int, offset: int) -> str:
    return f"byte {place + offset} (line {line_of(path, place + offset)})"


def _bz2_place(place: int, offset: int) -> str:
    return f"byte {offset} of the bzip2 block at byte {place}"


def _is_bz2(path: str | Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def _site_info(path: str) -> SiteInfo:
    status = os.stat(path)
    return _site_info_of_version(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=128)
def _site_info_of_version(path: str, size: int, modified_ns: int) -> SiteInfo:
    """Read the site information, once for all pieces of a file that a process reads."""
    if not size:
        raise ValueError(f"{path}: the file is empty")
    head = b""
    if _is_bz2(path):
        for block in read_blocks(path):
            head += block.data
            if len(head) >= HEAD_BYTES or b"<page>" in head:
                break
    else:
        head = beginning(path, HEAD_BYTES)
    return read_site_info(head[:HEAD_BYTES], path)


KIND = SourceKind(
    "wikipedia-dump", "MediaWiki export XML, plain or bzip2, also multistream; gives articles as prose",
    "'wikipedia-dump=enwiki-*-pages-articles*.xml*.bz2'", list_pieces, read_piece, licence=WIKIPEDIA_LICENCE,
)  # fmt: skip
