import gzip
import itertools
import json

import pytest
from made_up_corpus import read_source, sound, source_error

from data_prep.recipe import ReadPieces, run_recipe
from data_prep.sources import KINDS, Source, books, local_files
from data_prep.sources.jsonl import LINE_END
from data_prep.sources.local_files import cut_file
from data_prep.sources.text import DOCUMENT_BOUNDARY
from data_prep.text.clean import clean_text


def test_text_is_split_into_documents_at_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffOne.\r\nStill one.\r\n\r\n \t\r\nTwo.\r\n\r\n\r\n".encode())
    assert [d.text.strip() for d in read_source(f"text={path}")] == ["One.\nStill one.", "Two."]


def test_folder_and_glob_are_read_in_order_of_name_without_hidden_files(tmp_path):
    for name in ("b.txt", "a.txt", ".hidden.txt", "c.md"):
        (tmp_path / name).write_text(name)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.txt").write_text("d.txt")
    assert [d.text for d in read_source(f"text={tmp_path}")] == ["a.txt", "b.txt", "d.txt"]
    assert [d.text for d in read_source(f"text={tmp_path}/[bc].*")] == ["b.txt", "c.md"]


@pytest.mark.parametrize("piece_bytes", [1, 7, 50, 1000])
def test_pieces_contain_every_document_once(tmp_path, piece_bytes):
    path = tmp_path / "a.txt"
    texts = [f"Document {n}.\n" + "x" * (n % 13) for n in range(60)]
    path.write_text("\n\n".join(texts))
    pieces = cut_file("text", path, DOCUMENT_BOUNDARY, piece_bytes)
    assert [(a.end, b.start) for a, b in itertools.pairwise(pieces) if a.end != b.start] == []
    assert (pieces[0].start, pieces[-1].end) == (0, path.stat().st_size)
    read = [d.text.strip() for piece in pieces for d in KINDS["text"].read_piece(piece)]
    assert read == [text.strip() for text in texts]
    assert len(pieces) > 1 or piece_bytes == 1000


def test_wikiextractor_text_is_read_without_title_headings_and_traces_of_templates(tmp_path):
    (tmp_path / "wiki_00").write_text(
        '<doc id="12" url="http://x" title="Chen &quot;Z&quot; Li">\nChen "Z" Li\n\n'
        "Chen Li (; born November 1942 ) is a Chinese &amp; Swiss politician (, ) of note () .\n"
        "Career.\nHe wrote:\n<br>He worked in the ministry<br> for twenty long years.\n"
        "* a bullet in a list of things here\n[[File:Runzelmarken.jpg|thumb|250px|This was a picture of a stamp]]\n"
        '</doc>\n<doc id="13" url="y" title="Two">\nTwo\n\nThis second article has its own short prose.\n</doc>\n'
    )
    first, second = read_source(f"wikiextractor={tmp_path}")
    assert clean_text(first.text).split("\n") == [
        "Chen Li (born November 1942) is a Chinese & Swiss politician of note.",
        "He worked in the ministry for twenty long years.",
    ]
    assert (first.title, first.id) == ('Chen "Z" Li', "12")
    assert second.text == "This second article has its own short prose."


def test_wikiextractor_json_equals_its_text_output(tmp_path):
    body = "Oslo\n\nOslo is the capital and largest city of Norway.\nHistory.\n"
    (tmp_path / "wiki_00").write_text(json.dumps({"id": "1", "url": "", "title": "Oslo", "text": body}) + "\n")
    (tmp_path / "wiki_01").write_text(f'<doc id="1" url="" title="Oslo">\n{body}</doc>\n')
    first, second = read_source(f"wikiextractor={tmp_path}")
    assert (first.text, first.title, first.id) == (second.text, second.title, second.id)
    assert first.text == "Oslo is the capital and largest city of Norway."


GUTENBERG = (
    "The Project Gutenberg EBook of A Tale, by Nobody\r\n\r\nTitle: A Tale\r\n\r\n"
    "*** START OF THIS PROJECT GUTENBERG EBOOK A TALE ***\r\n\r\nProduced by Volunteers\r\n\r\nA TALE\r\n\r\n"
    "Chapter 1\r\n\r\nIt was a _very_ cold, well-\r\nknown café, and the wind\r\nblew.\r\n\r\n* * *\r\n\r\n"
    "[Illustration: a café]\r\n\r\n“Come in,” said she;\r\nand he came.\r\n\r\n"
    "End of the Project Gutenberg EBook of A Tale\r\n\r\n"
    "*** END OF THIS PROJECT GUTENBERG EBOOK A TALE ***\r\n\r\nFull licence here.\r\n"
)
PARAGRAPHS = ["It was a very cold, well-known café, and the wind blew.", "“Come in,” said she; and he came."]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "latin-1"])
def test_book_in_any_encoding_is_unwrapped_and_loses_its_gutenberg_header(tmp_path, encoding):
    quotes = str.maketrans("“”", '""') if encoding == "latin-1" else {}
    (tmp_path / "tale.txt").write_bytes(GUTENBERG.translate(quotes).encode(encoding))
    (book,) = read_source(f"books={tmp_path}")
    assert book.text.split("\n") == [paragraph.translate(quotes) for paragraph in PARAGRAPHS]
    assert book.title == "tale"


def test_book_with_one_paragraph_per_line_is_not_joined(tmp_path):
    lines = ["CHAPTER I.", "The first paragraph " + "goes on " * 30 + "here.", '"No!" said he.', "CHAPTER THE LAST"]
    (tmp_path / "novel.txt").write_text("\n".join(lines))
    (book,) = read_source(f"books={tmp_path}")
    assert book.text.split("\n")[:2] == lines[1:3]


HEADINGS = [
    "CHAPTER IV.", "chapter 1", "Chapter I", "chapter i.", "Book I: The Storm", "Chapter I The Storm", "The Book I",
    "Part I—Introduction", "Part I (continued)", "Act I, Scene II", "Letter XXIV To his Sister", "Part First",
    "Chapter XLVIII In Which It Ends", "Volume MDCCC", "Chapter VIIII", "Chapter the Last", "Part the Second. Of Bees",
]  # fmt: skip
NO_HEADINGS = [
    "The letter I wrote was never sent.", "Part I played, part I did not.", "The letter I'd sent was lost.",
    "The letter I’d sent was lost.", "The book did not sell.", "Part mild, part rude, he left.",
    "The book first appeared in London.", "The act last seen there was a juggler's.",
]  # fmt: skip


def test_sentence_that_begins_like_a_heading_of_a_book_is_prose():
    assert [line for line in HEADINGS if not books.is_heading(line)] == []
    assert [line for line in NO_HEADINGS if books.is_heading(line)] == []


def test_credits_of_a_book_are_a_line_or_name_the_project(tmp_path):
    prose = "Produced by the friction of the wheels, the noise grew until no one in the carriage could hear a word."
    team = "E-text prepared by Ann Volunteer, Ben Volunteer, and the Online Distributed Proofreading Team of Gutenberg"
    lines = ["Produced by Ann Volunteer", team, prose, "It was cold. " * 12 + "He came."]
    (tmp_path / "novel.txt").write_text("\n".join(lines))
    (book,) = read_source(f"books={tmp_path}")
    assert book.text.split("\n") == lines[2:]
    assert book.left_out.to_json() == {
        "credits or editorial brackets": {"parts": 2, "characters": len("".join(lines[:2]).replace(" ", ""))}
    }


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_book_that_is_longer_than_any_document_may_be_is_an_error(tmp_path, monkeypatch, pack):
    """A book is held in memory as a whole, so a corpus in one file would need many times its size."""
    monkeypatch.setattr(books, "LONGEST_DOCUMENT_BYTES", 1 << 20)
    monkeypatch.setattr(local_files, "PIECE_BYTES", 1 << 18)
    line = "It was a cold day in the mountains, and nobody went out.\n"
    (tmp_path / "a.txt").write_bytes(pack((line * ((1 << 20) // len(line))).encode()))
    assert len(read_source(f"books={tmp_path}")) == 1
    (tmp_path / "a.txt").write_bytes(pack((line * ((1 << 20) // len(line) + 1)).encode()))
    message = (
        f"{tmp_path}/a.txt: a book of more than 1 MiB; give a file of several documents as another kind: text, jsonl"
    )
    assert source_error(f"books={tmp_path}") == message


def test_jsonl_reads_text_and_title(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "Line one.\\nTwo.", "title": "T", "id": 5}\n\n{"text": "caf\\u00e9"}\n')
    first, second = read_source(f"jsonl={path}")
    assert (first.text, first.title, first.id) == ("Line one.\nTwo.", "T", "5")
    assert (second.text, second.id) == ("café", f"{path}:0:2")


def test_python_docs_are_prose_and_repeat():
    source = Source.parse("python-docs")
    pieces = source.pieces()
    assert pieces == source.pieces()
    topics = list(source.kind.read_piece(pieces[0]))
    assert len(topics) > 50
    assert topics == list(source.kind.read_piece(pieces[0]))
    by_title = {d.title: d.text for d in topics}
    assert "Assert statements are a convenient way to insert debugging assertions into a program:" in by_title["assert"]
    argparse = next(p for p in pieces if p.path.endswith("/argparse.py"))
    (document,) = source.kind.read_piece(argparse)
    assert "This module is an optparse-inspired command-line parsing library that" in document.text
    assert ">>>" not in document.text
    assert "import sys" not in document.text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("wikiextracter=x", "unknown kind 'wikiextracter'; did you mean 'wikiextractor'?"),
        ("parket=x", "kinds: wikipedia-dump, wikiextractor, hub, parquet, jsonl, books, text, python-docs"),
        ("text", "text requires a path or glob"),
        ("python-docs=x", "takes no path"),
    ],
)
def test_invalid_source_is_an_error_that_lists_what_is_allowed(argument, message):
    with pytest.raises(ValueError, match="--source") as caught:
        Source.parse(argument)
    assert message in str(caught.value)


def test_line_numbers_count_from_the_beginning_of_a_file_in_several_pieces(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "ok"}\n' * 20 + "broken\n")
    pieces = cut_file("jsonl", path, LINE_END, 100)
    assert len(pieces) == 3
    with pytest.raises(ValueError, match=r"a.jsonl:21: not JSON"):
        list(sound(KINDS["jsonl"].read_piece(pieces[-1])))


def test_lines_before_a_piece_are_counted_once_for_all_of_its_bad_rows(tmp_path, monkeypatch):
    counted, line_of = [], local_files.line_of

    def counting(path, offset):
        counted.append(offset)
        return line_of(path, offset)

    monkeypatch.setattr(local_files, "line_of", counting)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "ok"}\n' * 20 + "broken\n" * 12)
    _, piece = cut_file("jsonl", path, LINE_END, 290)
    assert run_recipe([ReadPieces([piece], "skip")]) == {"bad row: not JSON": 12}
    assert counted == []
    faults = [document.fault() for document in KINDS["jsonl"].read_piece(piece)]
    assert [fault.split(": not JSON")[0] for fault in faults] == [f"{path}:{line}" for line in range(21, 33)]
    assert counted == [piece.start]
