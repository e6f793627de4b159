import bz2
import itertools
import os
import random
import shutil
import tracemalloc

import pytest
from made_up_corpus import sound
from made_up_dump import FOOT, HEAD, dump, made_up_pages, multistream, page

from data_prep.recipe import ReadPieces, run_recipe
from data_prep.sources import KINDS, Source, local_files
from data_prep.sources.kind import Piece
from data_prep.sources.mediawiki import bz2_blocks, export_xml
from data_prep.sources.mediawiki import dump as wikipedia_dump
from data_prep.sources.mediawiki.dump import list_pieces, read_piece

PROSE = "The made-up animal lives in the high mountains of the north. "


def read(path, piece_bytes=None):
    return [document for piece in list_pieces(str(path), piece_bytes) for document in sound(read_piece(piece))]


@pytest.fixture(scope="module")
def pages():
    return made_up_pages(170)


@pytest.fixture(scope="module")
def dumps(pages, tmp_path_factory):
    """The same pages as plain XML, as one bzip2 stream of several blocks, as many streams, and with empty streams."""
    folder = tmp_path_factory.mktemp("dumps")
    empty = bz2.compress(b"")
    contents = {
        "plain.xml": dump(pages),
        "single.xml.bz2": bz2.compress(dump(pages), 1),
        "large_blocks.xml.bz2": bz2.compress(dump(pages), 9),
        "many.xml.bz2": multistream(pages),
        "padded.xml.bz2": empty + multistream(pages[:70], 7).removesuffix(bz2.compress(FOOT.encode(), 1)) + empty * 2
        + bz2.compress("".join(pages[70:]).encode(), 1) + bz2.compress(FOOT.encode()) + empty,
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def test_dump_gives_articles_as_prose_with_id_and_title(tmp_path):
    path = tmp_path / "a.xml"
    path.write_bytes(dump([page("Chén & Li", f"'''Chén''' &amp;nbsp;is. {PROSE}{{{{Cite|x}}}}", 77)]))
    (document,) = read(path)
    assert document.text == f"Chén is. {PROSE}".strip()
    assert (document.id, document.title, document.dropped) == ("77", "Chén & Li", None)


def test_lines_of_plain_xml_are_counted_only_for_messages(tmp_path, monkeypatch):
    counted = []

    def line_of(path, offset):
        counted.append(offset)
        return local_files.line_of(path, offset)

    monkeypatch.setattr(wikipedia_dump, "line_of", line_of)
    content = dump([page(f"Title {number}", PROSE, number) for number in range(5)])
    (tmp_path / "a.xml").write_bytes(content)
    assert len(read(tmp_path / "a.xml")) == 5
    assert counted == []
    damaged = content.replace(b"Title 3", b"Title & 3")
    (tmp_path / "a.xml").write_bytes(damaged)
    (piece,) = list_pieces(str(tmp_path / "a.xml"))
    assert run_recipe([ReadPieces([piece], "skip")]) == {"bad row: page not well-formed": 1}
    assert counted == []
    (fault,) = [document.fault() for document in read_piece(piece) if document.fault]
    begin = damaged.rfind(b"<page>", 0, damaged.find(b"Title & 3"))
    assert counted == [begin]
    line = damaged.count(b"\n", 0, begin) + 1
    assert f"begins at byte {begin} (line {line})" in fault


def test_each_dropped_page_has_a_reason(tmp_path):
    path = tmp_path / "a.xml"
    table = "{|\n" + "| cell || cell\n|-\n" * 200 + "|}\n"
    cases = [
        ("redirect", page("A", "#REDIRECT [[B]]", 1)),
        ("redirect", page("A", "whatever " + PROSE, 2, extra='    <redirect title="B" />\n')),
        ("redirect", page("A", "#ПЕРЕНАПРАВЛЕНИЕ [[B]]", 3)),
        ("not in the article namespace", page("Sprik:A", PROSE, 4, 1)),
        ("not in the article namespace", page("Sprik:A", PROSE, 5, None)),
        ("not in the article namespace", page("user_talk:A", PROSE, 6, None)),
        ("disambiguation page", page("A", "'''A''' may be:\n* [[B]]\n{{Disambig}}", 7)),
        ("disambiguation page", page("A", "'''A''' may be:\n* [[B]]\n{{Begriffsklärung}}", 8)),
        ("disambiguation page", page("A (disambiguation)", PROSE, 9)),
        ("disambiguation page", page("A", PROSE + "__DISAMBIG__", 10)),
        ("list", page("List of animals", PROSE, 11)),
        ("list", page("Animals", PROSE + "\n" + "* [[Animal]], of some kind\n" * 100, 12)),
        ("list", page("Animals", PROSE + "\n" + table, 13)),
        ("no text", page("A", "", 14)),
        ("no text", page("A", None, 15)),
        ("no text", page("A", " \n", 16)),
        ("not wikitext", page("A", "{}", 17, model="json")),
        ("longer than 2 MiB", page("A", PROSE * 36_000, 18)),
        (None, page("Title: with a colon", PROSE, 19, None)),
        (None, page("A", "#Not a [[redirect]]\n" + PROSE, 20)),
        (None, page("A", PROSE * 10 + "{{disambiguation needed}}\n* [[B]]", 21)),
    ]
    path.write_bytes(dump([text for _, text in cases]))
    documents = read(path)
    assert [document.dropped for document in documents] == [reason for reason, _ in cases]
    assert all(document.text == "" for document in documents if document.dropped)


@pytest.mark.parametrize(
    "name", ["plain.xml", "single.xml.bz2", "large_blocks.xml.bz2", "many.xml.bz2", "padded.xml.bz2"]
)
def test_documents_do_not_depend_on_the_piece_size(dumps, pages, name):
    whole = read(dumps / name, 1 << 30)
    assert len(whole) == len(pages)
    assert whole == read(dumps / "plain.xml")
    size = (dumps / name).stat().st_size
    for piece_bytes in (size // 2 + 1, 7_001):
        pieces = list_pieces(str(dumps / name), piece_bytes)
        assert [(a.end, b.start) for a, b in itertools.pairwise(pieces) if a.end != b.start] == []
        assert (pieces[0].start, pieces[-1].end) == (0, size)
        assert read(dumps / name, piece_bytes) == whole


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 3])
def test_piece_boundary_at_any_byte_gives_each_page_once(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(wikipedia_dump, "CHUNK_BYTES", chunk_bytes)
    content = dump([page(f"Title {number}", "Short text.", number) for number in range(3)])
    (tmp_path / "a.xml").write_bytes(content)
    expected = [d.id for d in read(tmp_path / "a.xml")]
    for cut in range(len(HEAD) - 10, len(content), 5):
        halves = [Piece("wikipedia-dump", str(tmp_path / "a.xml"), *ends) for ends in ((0, cut), (cut, len(content)))]
        assert [d.id for half in halves for d in read_piece(half)] == expected, cut


def test_blocks_are_found_at_any_bit_and_decode_to_the_text(dumps):
    path = dumps / "single.xml.bz2"
    blocks = list(bz2_blocks.read_blocks(path))
    assert b"".join(block.data for block in blocks) == bz2.decompress(path.read_bytes())
    assert len(blocks) > 3
    for start in (1, blocks[1].offset, blocks[1].offset + 1, blocks[-1].offset + 1):
        assert list(bz2_blocks.read_blocks(path, start)) == [block for block in blocks if block.offset >= start]


def test_false_magic_within_a_block_is_ignored(dumps, monkeypatch):
    path = dumps / "single.xml.bz2"
    whole = read(path)
    true_magics, draw = bz2_blocks.find_magics, random.Random(9)
    false_bits = {draw.randrange(100, 8 * path.stat().st_size) for _ in range(12)}

    def with_false_ones(data, limit):
        yield from {*true_magics(data, limit), *(bit for bit in false_bits if bit < 8 * min(limit, len(data)))}

    monkeypatch.setattr(bz2_blocks, "find_magics", with_false_ones)
    # Other windows place the false magics elsewhere in the file; still only true blocks may be read.
    for piece_bytes in (1 << 30, 17_001):
        assert read(path, piece_bytes) == whole


@pytest.mark.parametrize("name", ["single.xml.bz2", "many.xml.bz2"])
def test_flipped_bit_of_a_bzip2_file_is_found(dumps, tmp_path, name):
    data, draw = (dumps / name).read_bytes(), random.Random(3)
    for _ in range(6):
        damaged = bytearray(data)
        damaged[draw.randrange(4, len(data) - 10)] ^= 1 << draw.randrange(8)
        (tmp_path / "a.xml.bz2").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.xml\.bz2: (?:the bzip2 block at byte \d+ is damaged|ends at byte)"):
            read(tmp_path / "a.xml.bz2", 20_000)


@pytest.mark.parametrize("name", ["single.xml.bz2", "many.xml.bz2"])
def test_truncated_bzip2_file_is_reported_with_its_end(dumps, tmp_path, name):
    data = (dumps / name).read_bytes()
    for end in (len(data) // 3, len(data) // 2, len(data) - 3):
        (tmp_path / "a.xml.bz2").write_bytes(data[:end])
        with pytest.raises(ValueError, match=rf"a\.xml\.bz2: ends at byte {end} within a bzip2 stream"):
            read(tmp_path / "a.xml.bz2", 20_000)


def test_dump_truncated_between_two_streams_is_found(dumps, tmp_path):
    data = (dumps / "many.xml.bz2").read_bytes()
    streams = [start for start in range(len(data)) if data.startswith(b"BZh11AY&SY", start)]
    (tmp_path / "a.xml.bz2").write_bytes(data[: streams[-1]])
    with pytest.raises(ValueError, match="the XML ends without </mediawiki>"):
        read(tmp_path / "a.xml.bz2")


GOOD, LATER = page("One", PROSE, 1), page("Two & Three", PROSE, 2)
AT = len(HEAD + GOOD) + 2
LINE = (HEAD + GOOD).count("\n") + 1
SECOND = f"the page 'Two & Three' (id 2) that begins at byte {AT} (line {LINE})"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.xml: the file is empty"),
        (b"Just text.", "a.xml: not XML: byte 0 begins b'Just text.'"),
        (b"\x1f\x8b\x08\x00", "a.xml: not XML: byte 0"),
        (b"BZh9 and no more", "a.xml: the bzip2 block at byte 0 is damaged"),
        ("<mediawiki>".encode("utf-16"), "a.xml: XML in UTF-16, expected UTF-8"),
        (b'<?xml version="1.0" encoding="ISO-8859-1"?><mediawiki>', "a.xml: XML in ISO-8859-1, expected UTF-8"),
        (b"<!-- x --><html><body/></html>", "not a MediaWiki export: the root element is <html>, expected <mediawiki>"),
        (b"<page><title>A</title></page>", "the root element is <page>, expected <mediawiki>"),
        (b"<page><title>A</title>\n<comment><E2></comment></page>",
         "expected <mediawiki>; not well-formed: mismatched tag at byte 38: b'comment></page>'"),
        (HEAD[:300].encode(), f"a.xml: the <siteinfo> at byte {HEAD.index('<siteinfo>')} is truncated or not well-f"),
        (HEAD.replace('key="6"', 'key="six"').encode(), "has a namespace with key 'six', which is not a number"),
        ((HEAD + GOOD + LATER.replace("<model>", "<model")).encode() + FOOT.encode(),
         f"{SECOND} is not well-formed: not well-formed (invalid token) in line 7, byte 20 of the page"),
        ((HEAD + GOOD).encode() + LATER.encode().replace(b"made-up", b"made\xffup") + FOOT.encode(),
         f"{SECOND} is not UTF-8: 0xff, at byte {LATER.index('-up') - 2} of the page"),
        ((HEAD + GOOD + LATER[:150]).encode(), f"the XML ends within {SECOND}; is the file truncated?"),
        ((HEAD + GOOD).encode(), "the XML ends without </mediawiki>, at byte"),
        ((HEAD + GOOD + "stray " + LATER + FOOT).encode(),
         f"expected <page> at byte {AT - 2} (line {LINE}), found b'stray'"),
        ((HEAD + GOOD.replace("</page>", "") + LATER + FOOT).encode(), "the page 'One' (id 1) that begins at"),
    ],
)  # fmt: skip
def test_unreadable_dump_is_reported_with_file_and_place_in_one_line(tmp_path, content, message):
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(ValueError, match="a.xml") as caught:
        read(tmp_path / "a.xml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_invalid_xml_in_a_sound_bzip2_block_is_reported_with_block_and_page(tmp_path):
    content = (HEAD + GOOD + LATER.replace("<model>", "<model") + FOOT).encode()
    (tmp_path / "a.xml.bz2").write_bytes(bz2.compress(content))
    with pytest.raises(ValueError, match=rf"\(id 2\) that begins at byte {AT} of the bzip2 block at byte 4 is"):
        read(tmp_path / "a.xml.bz2")


def test_page_of_50_megabytes_is_dropped_with_bounded_memory(tmp_path):
    with open(tmp_path / "a.xml", "wb") as file:
        long = page("Long", "@", 2)
        file.write((HEAD + GOOD + long[: long.index("@")]).encode())
        for _ in range(50):
            file.write(b"Lorem [[ipsum]] {{ \n" * 52_429)
        file.write((long[long.index("@") + 1 :] + LATER + FOOT).encode())
    tracemalloc.start()
    documents = read(tmp_path / "a.xml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(d.id, d.dropped) for d in documents] == [("1", None), ("2", "longer than 2 MiB"), ("2", None)]
    assert peak < 3 * export_xml.LONGEST_PAGE_BYTES


def test_folder_is_read_without_index_files(dumps, pages, tmp_path):
    parts = {
        "enwiki-pages-articles-multistream1.xml-p1p200.bz2": multistream(pages[:60]),
        "enwiki-pages-articles-multistream2.xml-p201p400.bz2": multistream(pages[60:]),
        "enwiki-pages-articles-multistream-index1.txt-p1p200.bz2": bz2.compress(b"600:10:AccessibleComputing\n"),
        "enwiki-pages-articles-multistream-index.txt.bz2": bz2.compress(b"600:10:AccessibleComputing\n"),
        "notes.txt": b"text",
    }
    for name, content in parts.items():
        (tmp_path / name).write_bytes(content)
    expected = read(dumps / "plain.xml")
    assert read(tmp_path) == expected
    assert read(f"{tmp_path}/enwiki-*.bz2") == expected


def test_two_forms_of_one_dump_are_an_error(tmp_path):
    for name in ("enwiki-pages-articles.xml.bz2", "enwiki-pages-articles-multistream.xml.bz2"):
        (tmp_path / name).write_bytes(multistream([GOOD]))
    with pytest.raises(ValueError, match="hold the same pages; keep only one of them"):
        list_pieces(str(tmp_path))


def test_listing_reads_only_the_head_of_a_file(dumps, tmp_path, monkeypatch):
    path = shutil.copy(dumps / "many.xml.bz2", tmp_path)  # a path of its own: site information is cached by path
    read_bytes = []
    pread = os.pread

    def counted(descriptor, count, offset):
        read_bytes.append(count)
        return pread(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", counted)
    monkeypatch.setattr(bz2_blocks, "WINDOW_BYTES", 1 << 14)
    pieces = list_pieces(str(path), 10_000)
    assert len(pieces) == -(-os.path.getsize(path) // 10_000)
    assert read_bytes
    assert sum(read_bytes) < 1 << 17


def test_kind_is_found_by_name(dumps):
    source = Source.parse(f"wikipedia-dump={dumps}/many.xml.bz2")
    assert source.kind is KINDS["wikipedia-dump"]
    assert len(source.pieces()) == 1
