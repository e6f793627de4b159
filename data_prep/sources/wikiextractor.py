"""Kind `wikiextractor`: the output of WikiExtractor, `<doc …>` text or (`--json`) one object per line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.sources.compression import beginning
from data_prep.sources.finding import find_files
from data_prep.sources.jsonl import read_rows
from data_prep.sources.kind import WIKIPEDIA_LICENCE, Document, Piece, SourceKind
from data_prep.sources.local_files import LINE_END, Part, cut_file, read_parts
from data_prep.sources.mediawiki.article_prose import prose_of_article, without_entities

LONGEST_HEADER_CHARACTERS = 10_000
_NEXT_ARTICLE = re.compile(rb"\n(?=<doc )")
_ATTRIBUTE = re.compile(r'(\w+)="(.*?)"(?=\s+\w+="|\s*$)')


def list_pieces(where: str) -> list[Piece]:
    """Cut all files of a folder (`AA/wiki_00` …), a file or a glob between articles."""
    pieces = []
    for path in find_files(where):
        pieces += cut_file("wikiextractor", path, _boundary(path))
    return pieces


def read_piece(piece: Piece) -> Iterator[Document]:
    """Yield the articles of a piece, without headings and traces of the extraction."""
    boundary = _boundary(piece.path)
    for part in read_parts(piece, boundary):
        if boundary is _NEXT_ARTICLE:
            yield from _articles(part)
            continue
        for row in read_rows(part):
            prose, left_out = prose_of_article(row.text, row.title)
            yield row.dropped or Document(prose, row.id, row.title, left_out=left_out)


def _boundary(path: str | Path) -> re.Pattern[bytes]:
    is_json = beginning(path, 64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{")
    return LINE_END if is_json else _NEXT_ARTICLE


def _articles(part: Part) -> Iterator[Document]:
    text = part.text()
    if text.strip() and not text.lstrip().startswith("<doc "):
        found = repr(text.strip()[:40])
        raise ValueError(f"{part.path}:{part.first_line}: expected '<doc …>' or a JSON object, found {found}")
    *articles, rest = text.split("</doc>")
    for article in articles:
        header, _, body = article.strip().partition("\n")
        if len(header) > LONGEST_HEADER_CHARACTERS:
            raise _unclosed(part, header[:60])
        attributes = dict(_ATTRIBUTE.findall(header.removeprefix("<doc ").removesuffix(">")))
        title = without_entities(attributes.get("title", ""))
        if not header.startswith("<doc ") or "\n<doc " in body:
            raise _unclosed(part, title)
        prose, left_out = prose_of_article(body, title)
        yield Document(prose, attributes.get("id", ""), title, left_out=left_out)
    if rest.strip():
        raise _unclosed(part, rest.strip()[:60])


def _unclosed(part: Part, name: str) -> ValueError:
    return ValueError(
        f"{part.path}: article {name!r} is not enclosed in '<doc …>' and '</doc>'; is the file truncated?"
    )


KIND = SourceKind(
    "wikiextractor", "output of WikiExtractor, <doc> text or JSON lines", "wikiextractor=extracted/",
    list_pieces, read_piece, licence=WIKIPEDIA_LICENCE,
)  # fmt: skip
