"""Kind `books`: one book per file, in the usual encodings, without Project Gutenberg's header and footer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from data_prep.sources.compression import beginning, compression_of
from data_prep.sources.finding import Names, find_files
from data_prep.sources.kind import Document, Piece, SourceKind, bad_row
from data_prep.sources.local_files import (
    LINE_END,
    LONGEST_DOCUMENT_BYTES,
    UTF_16_MARKS,
    binary_format,
    read_parts,
    whole_files,
)
from data_prep.sources.text import is_hard_wrapped, join_lines, split_blocks
from data_prep.text.left_out import LeftOut, count_characters
from data_prep.text.scripts import has_capitals_only

_MARK = r"^[^\S\n]*\*\*\*\s*%s (?:OF )?(?:THIS |THE )?PROJECT GUTENBERG.*$"
_START = re.compile(_MARK % "START", re.IGNORECASE | re.MULTILINE)
_END = re.compile(
    _MARK % "END" + r"|^[^\S\n]*End of (?:the |this )?Project Gutenberg(?:'s|’s)? .*$", re.IGNORECASE | re.MULTILINE
)
_OLD_START = re.compile(r"^\*END\*? ?THE SMALL PRINT!.*$", re.MULTILINE)
_CREDITS = re.compile(r"^(?:produced|prepared|e-?text prepared|transcribed|scanned) (?:and \w+ )?by\b", re.IGNORECASE)
_CREDITED = re.compile(r"Gutenberg|Proofread|https?://|\bwww\.", re.IGNORECASE)
"""What credits name that are longer than a line; a long paragraph without it is prose."""
_EDITORIAL = re.compile(r"\[(?:Illustration|Footnote|Sidenote|Transcriber)[^\]]*\]", re.IGNORECASE)
_EMPHASIS = re.compile(r"(?<![^\W_])([_=])(?=\S)([^_=\n]{1,400}?)(?<=\S)\1(?![^\W_])")
_ROMAN = r"(?=[ivxlcdm])m{0,4}(?:cm|cd|d?c{0,4})(?:xc|xl|l?x{0,4})(?:ix|iv|v?i{0,4})(?<=\w)"
"""A number, and no word of its letters (did, mild, civil)."""
_ORDINAL = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last"
_HEADING = re.compile(
    r"^(?:the )?(?:chapter|book|part|volume|vol|section|canto|act|scene|letter)\b\.? *(?:the )?"
    # "The letter I wrote" and "The book first appeared" are prose: a word in small letters follows.
    rf"(?:(?:i|{_ORDINAL})\b(?!['’]| *(?-i:[a-z]))|(?:\d+|(?!i\b){_ROMAN})\b).{{0,60}}$",
    re.IGNORECASE,
)
LONGEST_HEADING_CHARACTERS = 80
HEADING, CREDITS = "heading or ornament", "credits or editorial brackets"
GUTENBERG = "Project Gutenberg's header and footer"
_CHECKED_BYTES = 1 << 12


def list_pieces(where: str) -> list[Piece]:
    """List the `.txt` files of a folder (recursively), a file or a glob; each book is one piece.

    Files that are not text according to their first bytes are a ValueError, which counts them, and so is a book above
    64 MiB.
    """
    pieces = whole_files("books", find_files(where, Names.ending(".txt")))
    not_text = []
    for piece in pieces:
        if piece.bytes > LONGEST_DOCUMENT_BYTES and compression_of(piece.path) is None:
            raise ValueError(_too_long(piece))
        if what := _format_if_not_text(beginning(piece.path, _CHECKED_BYTES)):
            not_text.append(f"{piece.path}: not text but {what}")
    if not_text:
        more = f" (and {len(not_text) - 1} more files that are not text)" if len(not_text) > 1 else ""
        raise ValueError(f"{not_text[0]}{more}; remove it from the folder, or convert it")
    return pieces


def read_piece(piece: Piece) -> Iterator[Document]:
    """Yield the book without header, footer, credits, headings and editorial brackets; wrapped lines are joined."""
    data = _content(piece)
    # Any bytes can be decoded as Latin-1, so decoding does not detect a file that is not text.
    if what := _format_if_not_text(data):
        raise ValueError(f"{piece.path}: not text but {what}; remove it from the folder, or convert it")
    if (fault := _damage(piece.path, data)) is not None:
        encoding = "UTF-16" if data.startswith(UTF_16_MARKS) else "UTF-8"
        yield bad_row(f"not {encoding}", piece.path, lambda: fault)
        return
    whole = decode(data)
    text = without_gutenberg_header(whole)
    left_out = LeftOut()
    if len(text) < len(whole):
        left_out.parts[GUTENBERG] = 1
        left_out.characters[GUTENBERG] = count_characters(whole) - count_characters(text)
    paragraphs = [join_lines(block) for block in split_blocks(text)] if is_hard_wrapped(text) else text.split("\n")
    kept = []
    for paragraph in paragraphs:
        tidy = _tidy(paragraph)
        if tidy and not is_heading(tidy):
            kept.append(tidy)
        elif paragraph.strip():
            left_out.add(HEADING if tidy else CREDITS, paragraph)
    title = os.path.splitext(os.path.basename(piece.path))[0]
    yield Document("\n".join(kept), piece.path, title, left_out=left_out)


def _content(piece: Piece) -> bytes:
    """Return the content of a book, which is held in memory as a whole; one above 64 MiB is a ValueError."""
    content = bytearray()
    for part in read_parts(piece, LINE_END):
        content += part.data
        if len(content) > LONGEST_DOCUMENT_BYTES:
            raise ValueError(_too_long(piece))
    return bytes(content)


def _too_long(piece: Piece) -> str:
    limit = LONGEST_DOCUMENT_BYTES >> 20
    return (
        f"{piece.path}: a book of more than {limit} MiB; give a file of several documents as another kind: text, jsonl"
    )


def _format_if_not_text(data: bytes) -> str | None:
    return None if data.startswith(UTF_16_MARKS) else binary_format(data)


def _damage(path: str, data: bytes) -> str | None:
    """Return what is wrong with a book in UTF-8 or UTF-16 that cannot be decoded; None if it can.

    A byte order mark says that a book is in UTF-16. A book in another encoding than UTF-8 has few characters outside
    ASCII that happen to be characters of UTF-8, and the others are errors.
    """
    if data.startswith(UTF_16_MARKS):
        try:
            data.decode("utf-16")
        except UnicodeDecodeError as error:
            # Offsets count from the byte order mark, which tells the order of the bytes.
            line = data[: error.start & ~1].decode("utf-16", "replace").count("\n") + 1
            return (
                f"{path}: not UTF-16 text at byte {error.start} (line {line}): {error.reason}; the file is damaged or"
                " truncated"
            )
        return None
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        replaced = data.decode("utf-8", "replace")
        errors = replaced.count("\ufffd") - data.count("\ufffd".encode())
        sound = sum(not character.isascii() for character in replaced) - replaced.count("\ufffd")
        if sound <= errors:
            return None
        line = data.count(b"\n", 0, error.start) + 1
        return (
            f"{path}: not UTF-8 text at byte {error.start} (line {line}): 0x{data[error.start]:02x}, though {sound:,}"
            " other characters are UTF-8; the file is damaged or truncated"
        )
    return None


def decode(data: bytes) -> str:
    """Decode UTF-16 with a byte order mark, otherwise UTF-8, Windows-1252 or Latin-1.

    Damaged UTF-16 is a UnicodeDecodeError: any bytes would be text in Latin-1.
    """
    for encoding in ("utf-16",) if data.startswith(UTF_16_MARKS) else ("utf-8-sig", "cp1252"):
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            if encoding == "utf-16":
                raise
            continue
    else:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def without_gutenberg_header(text: str) -> str:
    """Return the text between Project Gutenberg's start and end markers; text without markers is not changed."""
    if start := _START.search(text) or _OLD_START.search(text):
        text = text[start.end() :]
    if end := _END.search(text, len(text) // 2):
        text = text[: end.start()]
    return text


def is_heading(paragraph: str) -> bool:
    """Return whether a paragraph is a heading or an ornament: `CHAPTER IV.`, `* * *`, a short line in capitals.

    A script without capitals has no such headings, because any short paragraph would be one.
    """
    if len(paragraph) > LONGEST_HEADING_CHARACTERS:
        return False
    if _HEADING.match(paragraph):
        return True
    return '"' not in paragraph and "“" not in paragraph and has_capitals_only(paragraph)


def _tidy(paragraph: str) -> str:
    """Remove emphasis marks and editorial brackets; return an empty string for a line of credits."""
    if "[" in paragraph:
        enclosed, bracket, rest = paragraph.rpartition("]")
        paragraph = _EDITORIAL.sub("", enclosed + bracket) + rest
    if "_" in paragraph or "=" in paragraph:
        paragraph = _EMPHASIS.sub(r"\2", paragraph)
    paragraph = paragraph.strip()
    if _CREDITS.match(paragraph) and (len(paragraph) <= LONGEST_HEADING_CHARACTERS or _CREDITED.search(paragraph)):
        return ""
    return paragraph


KIND = SourceKind(
    "books", "a folder of books, one per file; UTF-8, BOM or Latin-1; without Project Gutenberg's header and footer",
    "books=gutenberg/", list_pieces, read_piece,
)  # fmt: skip
