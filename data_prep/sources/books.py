"""Kind `books`: one book a file, in the encodings that old e-texts come in, without Project Gutenberg's frame."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from data_prep.sources.kind import Document, Piece, SourceKind
from data_prep.sources.local_files import find_files, read_bytes, what_it_is, whole_files
from data_prep.sources.text import blocks, is_hard_wrapped, join_lines

_MARK = r"^\s*\*\*\*\s*%s (?:OF )?(?:THIS |THE )?PROJECT GUTENBERG.*$"
_START = re.compile(_MARK % "START", re.IGNORECASE | re.MULTILINE)
_END = re.compile(
    _MARK % "END" + r"|^\s*End of (?:the |this )?Project Gutenberg(?:'s|’s)? .*$", re.IGNORECASE | re.MULTILINE
)
_OLD_START = re.compile(r"^\*END\*? ?THE SMALL PRINT!.*$", re.MULTILINE)
_CREDITS = re.compile(r"^(?:produced|prepared|e-?text prepared|transcribed|scanned) (?:and \w+ )?by\b", re.IGNORECASE)
_EDITORIAL = re.compile(r"\[(?:Illustration|Footnote|Sidenote|Transcriber)[^\]]*\]", re.IGNORECASE)
_EMPHASIS = re.compile(r"(?<![^\W_])([_=])(?=\S)([^_=\n]{1,400}?)(?<=\S)\1(?![^\W_])")
_HEADING = re.compile(
    r"^(?:the )?(?:chapter|book|part|volume|vol|section|canto|act|scene|letter)\b\.? *(?:the )?"
    r"(?:[ivxlcdm]+|\d+|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last)\b.{0,60}$",
    re.IGNORECASE,
)
LONGEST_HEADING_CHARACTERS = 80
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_LOOKED_AT_BYTES = 1 << 12


def list_pieces(where: str) -> list[Piece]:
    """The `.txt` files of a folder and its sub-folders, a file or a glob; a book is never cut.

    Raises:
        ValueError: nothing is there, or files are not text, as their beginnings show; all such are counted.
    """
    pieces = whole_files("books", find_files(where, (".txt",)))
    strangers = []
    for piece in pieces:
        with open(piece.path, "rb") as file:
            if what := _not_a_book(file.read(_LOOKED_AT_BYTES)):
                strangers.append(f"{piece.path}: not text but {what}")
    if strangers:
        more = f" (and {len(strangers) - 1} more files that are not text)" if len(strangers) > 1 else ""
        raise ValueError(f"{strangers[0]}{more}; take it out of the folder, or convert it")
    return pieces


def read_piece(piece: Piece) -> Iterator[Document]:
    """The book: frame, credits, headings and editorial brackets removed, wrapped paragraphs joined.

    Raises:
        ValueError: not text; any text can be decoded, so that this alone tells a picture from a book.
    """
    data = read_bytes(piece)
    if what := _not_a_book(data):
        raise ValueError(f"{piece.path}: not text but {what}; take it out of the folder, or convert it")
    text = without_gutenberg_frame(decode(data))
    paragraphs = [join_lines(block) for block in blocks(text)] if is_hard_wrapped(text) else text.split("\n")
    kept = [paragraph for paragraph in map(_tidy, paragraphs) if paragraph and not is_heading(paragraph)]
    title = os.path.splitext(os.path.basename(piece.path))[0]
    yield Document("\n".join(kept), piece.path, "books", title)


def _not_a_book(data: bytes) -> str | None:
    return None if data.startswith(_UTF_16_MARKS) else what_it_is(data)


def decode(data: bytes) -> str:
    """Text from UTF-8 (with or without byte order mark), else UTF-16 by its mark, else Windows-1252 or Latin-1."""
    if data.startswith(_UTF_16_MARKS):
        encodings = ["utf-16", "latin-1"]
    else:
        encodings = ["utf-8-sig", "cp1252", "latin-1"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise AssertionError("Latin-1 decodes any bytes")


def without_gutenberg_frame(text: str) -> str:
    """What lies between Project Gutenberg's start and end marks; text without them comes back as it is."""
    if start := _START.search(text) or _OLD_START.search(text):
        text = text[start.end() :]
    if end := _END.search(text, len(text) // 2):
        text = text[: end.start()]
    return text


def is_heading(paragraph: str) -> bool:
    """Whether a paragraph is a heading or an ornament: `CHAPTER IV.`, `* * *`, a short line without small letters."""
    if len(paragraph) > LONGEST_HEADING_CHARACTERS:
        return False
    if _HEADING.match(paragraph):
        return True
    return paragraph.upper() == paragraph and '"' not in paragraph and "“" not in paragraph


def _tidy(paragraph: str) -> str:
    """Emphasis marks and editorial brackets removed; empty for a credits line."""
    if "[" in paragraph:
        paragraph = _EDITORIAL.sub("", paragraph)
    if "_" in paragraph or "=" in paragraph:
        paragraph = _EMPHASIS.sub(r"\2", paragraph)
    paragraph = paragraph.strip()
    return "" if _CREDITS.match(paragraph) else paragraph


KIND = SourceKind(
    "books",
    "a folder of books, one a file; UTF-8, BOM or Latin-1; Project Gutenberg's frame removed",
    "books=gutenberg/",
    list_pieces,
    read_piece,
)
