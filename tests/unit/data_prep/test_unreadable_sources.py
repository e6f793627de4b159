"""Files whose content does not match their names, and compressed files."""

import gzip
import io
import json
import zipfile

import pyarrow as pa
import pytest
from made_up_corpus import read_source

from data_prep.sources import Source
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
        (PNG, "not text but a PNG image"),
        (zipped(), "not text but a zip archive (or EPUB, DOCX, ODT)"),
        (b"%PDF-1.7\n%\xe2\xe3\n1 0 obj\n", "not text but a PDF"),
        (gzip.compress(b"It was a cold day.", mtime=0), "not text but compressed with gzip"),
        (b"It was a cold day.\n\0\0It was a cold day.\n" * 9, "not text but binary (NUL at byte 19)"),
        ("It was a cold day.\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (bytes(range(1, 256)) * 9, "not text but binary (more than 1% control characters)"),
        (b"It was a cold day.\n" * 900 + b"\0", "not text but binary (NUL at byte 17100)"),
    ],
    ids=["png", "zip", "pdf", "gzip", "nul", "utf-16", "control characters", "late nul"],
)
def test_book_that_is_not_text_is_an_error_with_its_format(tmp_path, content, message):
    (tmp_path / "good.txt").write_text("It was a cold day.\n" * 20)
    (tmp_path / "odd.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.txt: not text but") as caught:
        read_source(f"books={tmp_path}")
    assert message in str(caught.value)


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


@pytest.mark.parametrize("kind", ["text", "jsonl", "wikiextractor"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PNG, "not UTF-8 text at byte 0 (line 1): 0x89; the file is a PNG image"),
        ("Eins.\n".encode("utf-16"), "not UTF-8 text at byte 0 (line 1): 0xff; the file is UTF-16"),
        (b"caf\xc3\xa9\nna\xefve\n", "not UTF-8 text at byte 8 (line 2): 0xef; convert it, for example with iconv"),
        (b"fine\n\nfi\0ne\n", "not UTF-8 text at byte 8 (line 3): NUL; the file is not text, or is damaged"),
    ],
)
def test_bytes_that_are_not_utf_8_are_reported_with_their_place(tmp_path, kind, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.txt: not UTF-8") as caught:
        read_source(f"{kind}={tmp_path}/a.txt")
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["text", "jsonl", "books", "wikiextractor"])
def test_source_of_empty_files_is_an_error(tmp_path, kind):
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=f"--source {kind}=.*a.txt: nothing to read: the files are empty"):
        read_source(f"{kind}={tmp_path}/a.txt")


def lines(count):
    return "".join(json.dumps({"text": f"Line {n} — naïve."}) + "\r\n" for n in range(count)).encode()


@pytest.mark.parametrize(("ending", "codec"), [("gz", "gzip"), ("zst", "zstd")])
def test_compressed_jsonl_equals_the_plain_file(tmp_path, ending, codec):
    (tmp_path / "plain.jsonl").write_bytes(lines(5000))
    second = pa.compress(lines(5000)[-1:], codec=codec, asbytes=True)
    whole = pa.compress(b"\xef\xbb\xbf" + lines(5000), codec=codec, asbytes=True)
    path = tmp_path / "folder" / f"a.jsonl.{ending}"
    path.parent.mkdir()
    path.write_bytes(whole + second)
    texts = [d.text for d in read_source(f"jsonl={path.parent}")]
    assert texts == [d.text for d in read_source(f"jsonl={tmp_path}/plain.jsonl")]
    assert len(texts) == 5000
    assert read_source(f"jsonl={path.parent}")[7].id == f"{path}:8"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.jsonl\.\w+: damaged or truncated after line \d+: "):
        read_source(f"jsonl={path}")
    path.write_bytes(pa.compress(b'{"text": "ok"}\nbroken\n', codec=codec, asbytes=True))
    with pytest.raises(ValueError, match=rf"a\.jsonl\.{ending}:2: not JSON"):
        read_source(f"jsonl={path}")
    path.write_bytes(pa.compress(b'{"text": "ok"}\n{"text": "na\xefve"}\n', codec=codec, asbytes=True))
    with pytest.raises(ValueError, match=rf"a\.jsonl\.{ending}:2: not UTF-8 at byte 12 of the line"):
        read_source(f"jsonl={path}")
