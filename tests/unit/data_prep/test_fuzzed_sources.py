"""Damaged input of every kind: no traceback, no hang, and never a success with other documents than the input has.

`BERT_PLD_FUZZ_CASES=500` tries more cases than the suite does.
"""

import bz2
import contextlib
import gzip
import json
import lzma
import random
import time

import pytest
from isolated_cases import CASES, SECONDS
from made_up_corpus import WORDS, read_source
from made_up_dump import HEAD, dump, made_up_pages

from data_prep.recipe import Drop, Normalise, ReadPieces, SplitSentences, run_recipe
from data_prep.sources import Source
from data_prep.sources.mediawiki.dump import list_pieces, read_piece
from data_prep.sources.mediawiki.site_info import CANONICAL_NAMES, SiteInfo
from data_prep.sources.mediawiki.wikitext import article_of_wikitext
from data_prep.text.clean import drop_reason


@contextlib.contextmanager
def one_line_errors():
    """Allow a ValueError of one line, as a user sees it, and no other error; check the time."""
    began = time.process_time()
    message, kind = "nothing is wrong", ValueError
    try:
        yield
    except ValueError as error:
        message, kind = str(error), type(error)
    assert kind is ValueError  # Not UnicodeDecodeError and other kinds, which do not say where.
    assert 10 < len(message) < 1000
    assert time.process_time() - began < SECONDS


def damaged(data, draw):
    """Change, remove, repeat or insert bytes at a few places, or cut the end off."""
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        place, length = draw.randrange(len(data)), draw.choice([1, 1, 2, 10, 200])
        change = draw.randrange(6)
        if change == 0:
            data[place] ^= 1 << draw.randrange(8)
        elif change == 1:
            data[place : place + length] = draw.randbytes(length)
        elif change == 2:
            del data[place : place + length]
        elif change == 3:
            data[place:place] = data[place : place + length] * draw.choice([1, 3, 500])
        elif change == 4:
            data[place:place] = draw.choice(
                [b"\0", b"\xff", b"<", b"&", b'"', b"\n", b"\r", b"{", b"[" * 3000, b"9" * 5000]
            )
        else:
            del data[max(place, 1) :]
        if not data:
            return b"\n"
    return bytes(data)


def rows(draw):
    """Return lines of JSON, some of them not sound, and what each sound one must give: its text or None."""
    lines, expected = [b'{"text": "The first row."}'], ["The first row."]
    for _ in range(draw.randint(1, 12)):
        text = " ".join(draw.choices([*WORDS, "é", "中", "\n", "\ud800"], k=5))
        value = draw.choice([text, text, text, None, 5, [text], {"a": text}, True, "", 1e400, "0" * 6000])
        record = draw.choice(
            [{"text": value}, {"id": value, "text": text, "title": value}, {"body": text}, [value], value]
        )
        line = json.dumps(record, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
        if draw.random() < 0.1:
            line = draw.choice(
                [b"[" * 5000, b'{"a": ' * 5000, b'{"text": "a", "n": ' + b"9" * 6000 + b"}", b"9" * 6000]
            )
        if draw.random() < 0.2:
            line = damaged(line, draw).replace(b"\n", b" ")
        if not line.strip():
            continue
        lines.append(line)
        try:
            found = json.loads(line.decode())
            found = found["text"] if isinstance(found, dict) and isinstance(found.get("text"), str) else None
            expected.append(None if b"\0" in line else found)
        except (ValueError, RecursionError):
            expected.append(None)
    return lines, expected


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\n\n"])
def test_each_row_of_json_lines_is_read_or_counted(tmp_path, ending):
    draw = random.Random(len(ending))
    for _ in range(CASES // 3 + 1):
        lines, expected = rows(draw)
        (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" * draw.randrange(2) + ending.join(lines))
        source = Source.parse(f"jsonl={tmp_path}")
        with one_line_errors():
            documents = [document for piece in source.pieces() for document in source.kind.read_piece(piece)]
            assert [None if d.dropped else d.text for d in documents] == expected, lines
            faults = [document.fault() for document in documents if document.fault]
            assert all("\n" not in fault and "a.jsonl:" in fault for fault in faults)
            steps = [ReadPieces(source.pieces(), "skip"), Normalise(), Drop("unfit", drop_reason), SplitSentences("en")]
            counted = sum(count for reason, count in run_recipe(steps).items() if reason.startswith("bad row: "))
            assert counted == sum(document.fault is not None for document in documents)


@pytest.mark.parametrize("kind", ["jsonl", "wikiextractor", "text", "books"])
def test_damaged_text_files_are_read_or_reported(tmp_path, kind):
    draw = random.Random(kind)
    prose = "\n".join(" ".join(draw.choices(WORDS, k=12)) + " (; née [[é]] &amp; <b>x</b> ) ." for _ in range(30))
    sound = {
        "jsonl": "\n".join(json.dumps({"text": line}) for line in prose.split("\n")),
        "wikiextractor": f'<doc id="1" url="u" title="One">\nOne\n\n{prose}\n</doc>\n' * 3,
        "text": prose.replace("\n", "\n\n"), "books": f"*** START OF THE PROJECT GUTENBERG EBOOK\n{prose}",
    }[kind].encode()  # fmt: skip
    for _ in range(CASES // 4 + 1):
        (tmp_path / "a.txt").write_bytes(damaged(sound, draw))
        source = Source.parse(f"{kind}={tmp_path}/a.txt")
        with one_line_errors():
            run_recipe([ReadPieces(source.pieces()), Normalise(), Drop("unfit", drop_reason), SplitSentences("de")])


def test_pages_of_a_damaged_dump_are_all_read_or_reported(tmp_path):
    draw = random.Random(11)
    sound = dump(made_up_pages(12, seed=3))
    for _ in range(CASES):
        data = sound[: len(HEAD)] + damaged(sound[len(HEAD) :], draw)
        (tmp_path / "a.xml").write_bytes(data)
        with one_line_errors():
            whole = [document for piece in list_pieces(f"{tmp_path}/a.xml") for document in read_piece(piece)]
            assert len(whole) == data.count(b"<page>")
            assert data.rstrip().endswith(b">")
            parts = [document for piece in list_pieces(f"{tmp_path}/a.xml", 3000) for document in read_piece(piece)]
            assert [d.text for d in parts] == [d.text for d in whole]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
def test_damaged_compressed_file_gives_its_content_or_an_error(tmp_path, compress):
    draw = random.Random(7)
    lines = [json.dumps({"text": " ".join(draw.choices(WORDS, k=9))}) for _ in range(60)]
    sound = compress("\n".join(lines).encode())
    texts = [json.loads(line)["text"] for line in lines]
    for _ in range(CASES // 2):
        (tmp_path / "a.jsonl").write_bytes(damaged(sound, draw))
        with one_line_errors():
            assert [document.text for document in read_source(f"jsonl={tmp_path}")] == texts


MARKUP = [
    "{{", "}}", "[[", "]]", "[", "]", "(", ")", "|", "=", "''", "'''", "{|", "|}", "|-", "!", "*", "#", ":", ";", "==",
    "<ref>", "</ref>", "<ref/>", "<br>", "<!--", "-->", "<nowiki>", "</nowiki>", "<math>", "-{", "}-", "&amp;", "&#39;",
    "__TOC__", "http://a.b", "[http://c", "{{lang|fr|", "{{convert|5|km", "[[File:a.jpg|", "{{{1}}}", "\\frac", ",",
    ".", "...", "。", "「",
]  # fmt: skip


def test_any_wikitext_gives_prose_without_markup():
    draw = random.Random(13)
    site = SiteInfo(dict(CANONICAL_NAMES))
    for _ in range(CASES * 3):
        tokens = draw.choices([*MARKUP, " ", "\n", "\n\n", *WORDS[:20]], k=draw.choice([5, 50, 500]))
        repeated = draw.choice([1, 1, 1, 40])
        with one_line_errors():
            prose = article_of_wikitext(draw.choice(["", " "]).join(tokens) * repeated, "Title", site).prose
            assert not any(mark in prose for mark in ("{{", "}}", "[[", "]]", "'''", "<ref"))
