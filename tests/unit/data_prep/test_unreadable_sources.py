"""Files whose content does not match their names, and compressed files."""

import bz2
import gzip
import io
import json
import lzma
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_corpus import card_of, made_up_documents, read_source, source_error
from made_up_dump import dump, page

from data_prep.__main__ import main
from data_prep.sources import Source, local_files
from data_prep.sources.local_files import binary_format

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("book.txt", "It was a cold day.\n" * 20)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PNG, "a PNG image"),
        (zipped(), "a zip archive (or EPUB, DOCX, ODT)"),
        (b"%PDF-1.7\n%\xe2\xe3\n1 0 obj\n", "a PDF"),
        (b"It was a cold day.\n\0\0It was a cold day.\n" * 9, "binary (NUL at byte 19)"),
        ("It was a cold day.\n".encode("utf-16-le"), "binary, or UTF-16 without a byte order mark"),
        (bytes(range(1, 256)) * 9, "binary (more than 1% control characters)"),
        (b"It was a cold day.\n" * 900 + b"\0", "binary (NUL at byte 17100)"),
    ],
    ids=["png", "zip", "pdf", "nul", "utf-16", "control characters", "late nul"],
)
def test_book_that_is_not_text_is_an_error_with_its_format(tmp_path, content, message):
    (tmp_path / "good.txt").write_text("It was a cold day.\n" * 20)
    (tmp_path / "odd.txt").write_bytes(content)
    assert f"odd.txt: not text but {message}" in source_error(f"books={tmp_path}")


def test_all_files_that_are_not_text_are_found_when_pieces_are_listed(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_bytes(PNG)
    with pytest.raises(ValueError, match=r"a\.txt: not text but a PNG image \(and 2 more files that are not text\)"):
        Source.parse(f"books={tmp_path}").pieces()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16"])
def test_text_with_form_feeds_and_accents_in_any_encoding_is_text(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(("Le café était froid à Noël.\n" * 30 + "\f").encode(encoding))
    assert "café" in read_source(f"books={tmp_path}")[0].text
    assert binary_format(b"Old DOS text.\r\n" * 9 + b"\x1a") is None


PLAIN = ("text", "wikiextractor")


@pytest.mark.parametrize(
    ("kinds", "content", "message"),
    [
        (PLAIN, PNG, "a.txt: not UTF-8 text at byte 0 (line 1): 0x89; the file is a PNG image"),
        (PLAIN, "Eins.\n".encode("utf-16"), "a.txt: not UTF-8 text at byte 0 (line 1): 0xff; the file is UTF-16"),
        (PLAIN, b"caf\xc3\xa9\nna\xefve\n", "a.txt: not UTF-8 text at byte 8 (line 2): 0xef; convert it, for example"),
        (PLAIN, b"fine\n\nfi\0ne\n", "not UTF-8 text at byte 8 (line 3): NUL; the file is not text, or is damaged"),
        ((*PLAIN, "jsonl", "books"), b"", "a.txt: nothing to read: the files are empty"),
        (["text"], b"Good line.\nBad \xff line.\n", "a.txt: not UTF-8 text at byte 15 (line 2): 0xff"),
        (["jsonl"], PNG, "a.txt:1: not UTF-8 text at byte 0 of the line: 0x89; the file is a PNG image"),
        (["jsonl"], '{"text": "a"}\n'.encode("utf-16"), "a.txt:1: not UTF-8 text at byte 0 of the line: 0xff"),
        (["jsonl"], b'{"text": "ok"}\n{"text": "na\xefve"}\n', "a.txt:2: not UTF-8 text at byte 12 of the line: 0xef"),
        (["jsonl"], b'{"text": "ok"}\n{"text": "o\0k"}\n', "a.txt:2: NUL at byte 11 of the line"),
        (["jsonl"], b'{"text": "ok", "n": ' + b"9" * 6000 + b"}\n", "a.txt:1: an integer of more than 4,300 digits"),
        (["jsonl"], b'{"text": "ok"}\n' + b"[" * 5000 + b"]" * 5000, "a.txt:2: objects or arrays are nested too"),
        (["jsonl"], b'{"text": "ok"}\n{"text": \n', "a.txt:2: not JSON"),
        (["jsonl"], b'{"body": "ok"}\n', 'a.txt:1: expected an object with a string under "text" (keys here: body)'),
        (["jsonl"], b"[1]\n", "a.txt:1: expected an object"),
        (["wikiextractor"], b"plain text\n", "a.txt:1: expected '<doc …>' or a JSON object, found 'plain text'"),
        (["wikiextractor"], b'<doc id="1" title="A">\nA\n', "is the file truncated?"),
        (["wikiextractor"], b'<doc id="1" title="A">\nA\n<doc id="2" title="B">\nB\n</doc>\n', "article 'A' is not"),
    ],
)  # fmt: skip
def test_file_that_cannot_be_read_is_reported_with_its_place(tmp_path, kinds, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    for kind in kinds:
        error = source_error(f"{kind}={tmp_path}/a.txt")
        assert error.startswith(f"--source {kind}={tmp_path}/a.txt: " if not content else f"{tmp_path}/a.txt:")
        assert message in error


def lines(count):
    return "".join(json.dumps({"text": f"Line {n} — naïve."}) + "\r\n" for n in range(count)).encode()


COMPRESS = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}  # fmt: skip


@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_jsonl_equals_the_plain_file(tmp_path, ending):
    (tmp_path / "plain.jsonl").write_bytes(lines(5000))
    second = COMPRESS[ending](lines(5000)[-1:])
    whole = COMPRESS[ending](b"\xef\xbb\xbf" + lines(5000))
    path = tmp_path / "folder" / f"a.jsonl.{ending}"
    path.parent.mkdir()
    path.write_bytes(whole + second)
    texts = [d.text for d in read_source(f"jsonl={path.parent}")]
    assert texts == [d.text for d in read_source(f"jsonl={tmp_path}/plain.jsonl")]
    assert len(texts) == 5000
    assert read_source(f"jsonl={path.parent}")[7].id == f"{path}:0:7"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.jsonl\.\w+: damaged or truncated after line \d+: "):
        read_source(f"jsonl={path}")
    for line, message in ((b"broken", "not JSON"), (b'{"text": "na\xefve"}', "not UTF-8 text at byte 12 of the line")):
        path.write_bytes(COMPRESS[ending](b'{"text": "ok"}\n' + line + b"\n"))
        assert f"a.jsonl.{ending}:2: {message}" in source_error(f"jsonl={path}")


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("kind", ["text", "books", "wikiextractor", "wikipedia-dump", "jsonl"])
def test_every_kind_reads_compressed_files_by_their_content(tmp_path, kind, ending):
    sentence = "It was a cold day in the old town on the river."
    content = {
        "text": f"{sentence}\n\n{sentence}\n", "books": f"{sentence}\n\n{sentence}\n",
        "wikiextractor": f'<doc id="1" title="A">\nA\n{sentence}\n</doc>\n',
        "wikipedia-dump": dump([page("A", sentence, 1)]),
        "jsonl": json.dumps({"text": sentence}) + "\n",
    }[kind]  # fmt: skip
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "plain.txt").write_bytes(data)
    (tmp_path / "packed.txt").write_bytes(COMPRESS[ending](data))
    plain, packed = ([d.text for d in read_source(f"{kind}={tmp_path}/{name}.txt")] for name in ("plain", "packed"))
    assert packed == plain
    assert sentence in packed[0]


def test_compressed_text_of_several_parts_equals_the_plain_file(tmp_path, monkeypatch):
    texts = [f"Document {n}.\n" + "x" * (n % 13) for n in range(600)]
    (tmp_path / "a.txt").write_bytes(gzip.compress("\n\n".join(texts).encode()))
    monkeypatch.setattr(local_files, "PIECE_BYTES", 1000)
    documents = read_source(f"text={tmp_path}/a.txt")
    assert [document.text.strip() for document in documents] == [text.strip() for text in texts]
    starts = [int(document.id.split(":")[-2]) for document in documents]
    assert starts == sorted(starts)
    assert len(set(starts)) > 5


@pytest.mark.parametrize(("ending", "cut"), [("gz", 5), ("bz2", 9), ("xz", 9)])
def test_damage_after_the_first_compressed_stream_is_an_error(tmp_path, ending, cut):
    path = tmp_path / "a.jsonl"
    path.write_bytes(COMPRESS[ending](lines(3)) + COMPRESS[ending](lines(3))[:cut])
    assert "a.jsonl: damaged or truncated after line 3: " in source_error(f"jsonl={path}")
    path.write_bytes(COMPRESS[ending](lines(3)) + b"garbage")
    assert "a.jsonl: damaged or truncated after line 3: " in source_error(f"jsonl={path}")


def test_gzip_padded_with_zeros_is_read(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(3)) + bytes(5000) + gzip.compress(lines(2)) + bytes(512))
    assert len(read_source(f"jsonl={tmp_path}")) == 5


def test_zstd_with_a_long_window_is_named(tmp_path):
    magic, no_content_size, window_of_2_gib = b"\x28\xb5\x2f\xfd", b"\x00", b"\xa8"
    raw_last_block = (1 | 4 << 3).to_bytes(3, "little") + b"abcd"
    (tmp_path / "a.jsonl.zst").write_bytes(magic + no_content_size + window_of_2_gib + raw_last_block)
    message = (
        "a.jsonl.zst: compressed by zstd with a window above 128 MiB (--long=28 or more); compress it again without"
    )
    assert message in source_error(f"jsonl={tmp_path}")


BAD = [
    "[" * 5000, '{"text": "cut', "[1]", '{"text": null}', '{"title": "x"}', '{"text": ["x"]}',
    '{"n": ' + "9" * 6000 + "}"
]  # fmt: skip
COUNTED = {
    "bad row: integer too long": 1, "bad row: nested too deeply": 1, "bad row: not JSON": 1,
    "bad row: not an object": 1, "no text": 2, "text is not a string": 1,
}  # fmt: skip


def test_bad_rows_stop_the_build_or_are_skipped_and_counted(tmp_path, capsys, tiny_vocab, small_tasks):
    rows = [json.dumps({"text": text}) for text in made_up_documents(40, seed=3)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows[:20]))
    (tmp_path / "b.jsonl").write_text("\n".join([*rows[20:30], *BAD, *rows[30:]]))
    arguments = ["build", "--source", f"jsonl={tmp_path}", "--output_dir", str(tmp_path / "out"), "--workers", "1"]
    arguments += ["--vocab", tiny_vocab, "--seq_length", "32", "--validation_fraction", "0.1"]
    assert main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path}/b.jsonl:11: objects or arrays are nested too deeply to be read (--bad_")
    assert main([*arguments, "--bad_rows", "skip"]) == 0
    said = capsys.readouterr()
    assert "1 of 2 reading tasks reused" in said.err
    assert "1 bad row: not JSON; 1 bad row: not an object" in said.out
    documents = card_of(tmp_path / "out")["documents"]
    assert (documents["dropped"], documents["read"]) == (COUNTED, 47)


def test_damaged_book_in_utf8_is_a_bad_row_and_no_other_encoding(tmp_path):
    prose = "“It was a cold day — the fjord’s ice was naïve,” she said.\n"
    (tmp_path / "a.txt").write_bytes((prose * 9).encode().replace("ï".encode(), b"\xef", 1))
    (tmp_path / "b.txt").write_bytes((prose * 9 + "“").encode()[:-1])
    (tmp_path / "c.txt").write_bytes((prose * 9).encode("cp1252"))
    (tmp_path / "d.txt").write_bytes("Она жила у моря.\n".encode("cp1251"))
    source = Source.parse(f"books={tmp_path}")
    first, second, third, fourth = (next(source.kind.read_piece(piece)) for piece in source.pieces())
    assert [document.dropped for document in (first, second)] == ["bad row: not UTF-8"] * 2
    assert f"{tmp_path}/a.txt: not UTF-8 text at byte 49 (line 1): 0xef, though 44 other characters" in first.fault()
    assert f"{tmp_path}/b.txt: not UTF-8 text at byte {len((prose * 9).encode())} (line 10): 0xe2" in second.fault()
    assert third.text.count("“It was a cold day — the fjord’s ice was naïve,”") == 9
    assert fourth.dropped is fourth.fault is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "at byte 234 (line 3): truncated data"),
        (lambda data: data[:100] + b"\x00\xdc" + data[102:], "at byte 100 (line 2): illegal encoding"),
        (lambda data: data[:100] + b"\x00\xd8" + data[102:], "at byte 100 (line 2): illegal UTF-16 surrogate"),
    ],
)
def test_damaged_book_in_utf16_is_a_bad_row_and_no_other_encoding(tmp_path, damage, message):
    data = ("这是一本很长的中文书，里面有许多句子。" * 2 + "\n").encode("utf-16-le") * 3
    data = b"\xff\xfe" + data
    (tmp_path / "a.txt").write_bytes(data)
    assert read_source(f"books={tmp_path}")[0].text.count("里面有许多句子。") == 6
    (tmp_path / "a.txt").write_bytes(damage(data))
    source = Source.parse(f"books={tmp_path}")
    (book,) = source.kind.read_piece(source.pieces()[0])
    assert (book.dropped, book.text) == ("bad row: not UTF-16", "")
    assert book.fault() == f"{tmp_path}/a.txt: not UTF-16 text {message}; the file is damaged or truncated"


def test_table_and_dump_skip_what_cannot_be_read(tmp_path):
    column = pa.array([b"One.", b"na\xefve", b"Two."]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    source = Source.parse(f"parquet={tmp_path}")
    documents = [document for piece in source.pieces() for document in source.kind.read_piece(piece)]
    assert [document.text for document in documents] == ["One.", "", "Two."]
    assert [document.dropped for document in documents] == [None, "bad row: not UTF-8", None]
    pages = dump(
        [page(name, f"{name} is an animal that lives in the mountains.", n) for n, name in enumerate("ABC", 1)]
    )
    (tmp_path / "a.xml").write_bytes(pages.replace(b"B is", b"B & is"))
    source = Source.parse(f"wikipedia-dump={tmp_path}/a.xml")
    documents = [document for piece in source.pieces() for document in source.kind.read_piece(piece)]
    assert [document.dropped for document in documents] == [None, "bad row: page not well-formed", None]
    assert "the page 'B' (id 2) that begins at byte" in documents[1].fault()
