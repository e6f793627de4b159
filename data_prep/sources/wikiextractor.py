"""Kind `wikiextractor`: the output of WikiExtractor, `<doc …>` text or (`--json`) one object per line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_prep.sources.jsonl import LINE_END, read_objects
from data_prep.sources.kind import WIKIPEDIA_LICENCE, Document, Piece, SourceKind
from data_prep.sources.local_files import cut_file, find_files, line_of, read_utf8
from data_prep.sources.mediawiki.article_prose import prose_of_article, without_entities

_NEXT_ARTICLE = re.compile(rb"\n(?=<doc )")
_ATTRIBUTE = re.compile(r'(\w+)="(.*?)"(?=\s+\w+="|\s*$)')


def list_pieces(where: str) -> list[Piece]:
    """Cut all files of a folder (`AA/wiki_00` …), a file or a glob between articles."""
    pieces = []
    for path in find_files(where):
        with open(path, "rb") as file:
            is_json = file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{")
        pieces += cut_file("wikiextractor", path, LINE_END if is_json else _NEXT_ARTICLE)
    return pieces


def read_piece(piece: Piece) -> Iterator[Document]:
    """Yield the articles of a piece, without headings and traces of the extraction."""
    text = read_utf8(piece)
    if text.lstrip().startswith("{"):
        for place, record in read_objects(piece):
            title = str(record.get("title", ""))
            prose, left_out = prose_of_article(record["text"], title)
            yield Document(prose, str(record.get("id", place)), title, left_out=left_out)
        return
    if text.strip() and not text.lstrip().startswith("<doc "):
        line = line_of(piece.path, piece.start)
        raise ValueError(f"{piece.path}:{line}: expected '<doc …>' or a JSON object, found {text.strip()[:40]!r}")
    *articles, rest = text.split("</doc>")
    for article in articles:
        header, _, body = article.strip().partition("\n")
        attributes = dict(_ATTRIBUTE.findall(header.removeprefix("<doc ").removesuffix(">")))
        title = without_entities(attributes.get("title", ""))
        if not header.startswith("<doc ") or "\n<doc " in body:
            raise _unclosed(piece, title)
        prose, left_out = prose_of_article(body, title)
        yield Document(prose, attributes.get("id", ""), title, left_out=left_out)
    if rest.strip():
        raise _unclosed(piece, rest.strip()[:60])


def _unclosed(piece: Piece, name: str) -> ValueError:
    return ValueError(
        f"{piece.path}: article {name!r} is not enclosed in '<doc …>' and '</doc>'; is the file truncated?"
    )


KIND = SourceKind(
    "wikiextractor", "output of WikiExtractor, <doc> text or JSON lines", "wikiextractor=extracted/",
    list_pieces, read_piece, licence=WIKIPEDIA_LICENCE,
)  # fmt: skip
