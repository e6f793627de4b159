import itertools
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_corpus import made_up_documents, read_source, source_error

from data_prep.sources import Source, parquet, tables
from data_prep.sources.parquet import RowRange
from data_prep.sources.tables import split_options


def write(path, texts, row_group_size=None, **more):
    pq.write_table(pa.table({"text": texts, **more}), path, row_group_size=row_group_size)


def test_rows_are_read_in_order_with_ids_and_titles(tmp_path):
    for name, numbers in (("b", range(5, 9)), ("a", range(5))):
        more = {"id": [*numbers], "title": ["T"] * len(numbers)}
        write(tmp_path / f"{name}.parquet", [f"Text {n}." for n in numbers], 2, **more)
    found = read_source(f"parquet={tmp_path}")
    assert [(d.text, d.id, d.title) for d in found] == [(f"Text {n}.", str(n), "T") for n in range(9)]


def test_column_option_selects_the_text_and_ids_default_to_file_and_row(tmp_path):
    path = tmp_path / "a=b,c.parquet"
    write(path, ["x", "y"], body=["One.", "Two."], title=[1, 2])
    found = read_source(f"parquet={path},column=body")
    assert [(d.text, d.id, d.title) for d in found] == [("One.", f"{path}:row 0", ""), ("Two.", f"{path}:row 1", "")]
    assert [d.id for d in read_source(f"parquet={path},column=body,id=text")] == ["x", "y"]


def test_null_is_dropped_with_a_reason_and_empty_text_is_kept(tmp_path):
    write(tmp_path / "a.parquet", ["One.", None, ""])
    found = [(d.text, d.dropped) for d in read_source(f"parquet={tmp_path}")]
    assert found == [("One.", None), ("", "no text"), ("", None)]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_string_type_is_read(tmp_path, kind):
    pq.write_table(pa.table({"text": pa.array(["One.", "Two.", "One."]).cast(kind)}), tmp_path / "a.parquet")
    assert [d.text for d in read_source(f"parquet={tmp_path}")] == ["One.", "Two.", "One."]


@pytest.mark.parametrize(("piece_bytes", "row_group_size"), [(1 << 30, 7), (3000, 7), (3000, 500), (100, 90), (1, 1)])
@pytest.mark.parametrize("join_rows", [1, 4])
def test_pieces_of_any_size_contain_every_row_once(tmp_path, monkeypatch, piece_bytes, row_group_size, join_rows):
    monkeypatch.setattr(parquet, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(tables, "BATCH_BYTES", 700)
    draw = random.Random(3)
    texts = [f"{n} " + "".join(draw.choices("abcdefgh", k=draw.randint(0, 200))) for n in range(500)]
    path = tmp_path / "a.parquet"
    write(path, texts, row_group_size)
    pieces = parquet.list_pieces(f"{path},join_rows={join_rows}")
    ranges = [RowRange.parse(piece.selection) for piece in pieces]
    assert [r.first for r in ranges] == [0, *(r.end for r in ranges[:-1])]
    assert ranges[-1].end == 500
    assert [(a.end, b.start) for a, b in itertools.pairwise(pieces) if a.end != b.start] == []
    groups = [texts[n : n + row_group_size] for n in range(0, 500, row_group_size)]
    expected = ["\n".join(group[n : n + join_rows]) for group in groups for n in range(0, len(group), join_rows)]
    assert [d.text for piece in pieces for d in parquet.read_piece(piece)] == expected
    if (piece_bytes, row_group_size) == (3000, 500):
        assert len(pieces) == parquet.MOST_PARTS


def test_joined_rows_skip_nulls_and_keep_the_first_id(tmp_path):
    write(tmp_path / "a.parquet", ["a", None, "c", "d", "e"], id=["1", "2", "3", "4", "5"])
    found = read_source(f"parquet={tmp_path},join_rows=2")
    assert [(d.text, d.id, d.dropped) for d in found] == [
        ("", "2", "no text"), ("a", "1", None), ("c\nd", "3", None), ("e", "5", None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (",column=body", "a.parquet: no column 'body' (columns: text, n, twice, twice, list)"),
        (",column=n", "a.parquet: column 'n' holds int64, not strings"),
        (",column=twice", "a.parquet: there are 2 columns named 'twice'"),
        (",column=list", "a.parquet: column 'list' holds list<element: int64>, not strings"),
        (",id=list", "a.parquet: column 'list' holds list<element: int64>; it cannot be the id"),
        (",title=nope", "a.parquet: no column 'nope'"),
        (",colum=n", "unknown option 'colum'; allowed: column, id, title, join_rows"),
        (",column=n,column=n", "option 'column' is given twice"),
        (",column=", "option 'column' has no value"),
        (",join_rows=0", "join_rows=0: must be an integer >= 1"),
        (",join_rows=x", "join_rows=x: must be an integer >= 1"),
    ],
)
def test_invalid_option_is_an_error_of_one_line(tmp_path, options, message):
    arrays = [pa.array(["x"]), pa.array([1]), pa.array(["x"]), pa.array(["x"]), pa.array([[1]])]
    pq.write_table(pa.Table.from_arrays(arrays, ["text", "n", "twice", "twice", "list"]), tmp_path / "a.parquet")
    error = source_error(f"parquet={tmp_path}/a.parquet{options}")
    assert "a.parquet" in error
    assert message in error
    assert "\n" not in error


def test_options_are_parsed_from_the_end_of_the_path():
    found = split_options("a:b=c,d.parquet,column=x=y,id=n", ("column", "id"))
    assert found == ("a:b=c,d.parquet", {"column": "x=y", "id": "n"})
    with pytest.raises(ValueError, match="no path before the options"):
        split_options(",column=x", ("column",))


def test_truncated_or_non_parquet_file_is_named(tmp_path):
    whole = tmp_path / "whole.parquet"
    write(whole, made_up_documents(300, 1), 100)
    data = whole.read_bytes()
    for name, content, message in [
        ("a.parquet", data[:-100], "truncated: begins as a Parquet file, but its end is missing"),
        ("b.parquet", b"text\n" * 100, "not a Parquet file"),
        ("c.parquet", b"", "not a Parquet file"),
        ("d.parquet", data[:-400] + bytes(392) + data[-8:], "the footer is damaged"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert f"{name}: {message}" in source_error(f"parquet={tmp_path / name}")


def test_damaged_row_group_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, made_up_documents(300, 1), 100)
    metadata = pq.read_metadata(path)
    chunk = metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    data[begin : begin + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(data)
    assert "a.parquet: damaged in row group 1" in source_error(f"parquet={path}")


def test_a_flipped_bit_never_loses_a_row_silently(tmp_path):
    """pyarrow may end a row group early, or lose one, without an error."""
    path = tmp_path / "a.parquet"
    texts = [f"row {n} of text" for n in range(10)]
    write(path, texts, 4)
    data, draw, reported = path.read_bytes(), random.Random(3), []
    for _ in range(400):
        flipped = bytearray(data)
        flipped[draw.randrange(4, len(data) - 8)] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            assert len(read_source(f"parquet={path}")) == 10
        except ValueError as error:
            reported.append(str(error).replace(str(path), "a.parquet"))
    assert len(reported) > 150
    assert "a.parquet: damaged in row group 0: holds 0 rows, but the footer promises 4 or more" in reported


def test_text_that_is_not_utf_8_is_reported_with_row_and_byte(tmp_path):
    text = pa.array([b"fine", b"na\xefve"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    message = "a.parquet: row 1: column 'text' is not UTF-8 at byte 2 of its text: 0xef"
    assert message in source_error(f"parquet={tmp_path}")


def test_file_with_fewer_rows_than_listed_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, ["One."] * 5)
    (piece,) = Source.parse(f"parquet={path}").pieces()
    write(path, ["One."] * 4)
    with pytest.raises(ValueError, match="has 4 rows, but had 5 when it was listed"):
        list(parquet.read_piece(piece))


def test_source_without_rows_is_an_error(tmp_path):
    write(tmp_path / "a.parquet", pa.array([], pa.string()))
    assert "nothing to read: the files are empty" in source_error(f"parquet={tmp_path}")


def test_memory_stays_below_the_size_of_a_row_group(tmp_path):
    """A row group of 128 MiB of text is read in a separate process."""
    path = tmp_path / "a.parquet"
    block = "".join(random.Random(1).choices("abcdefgh ", k=1 << 12))
    schema = pa.schema([("text", pa.string())])
    texts = [f"{n}{block[n:]}{block[:n]}" for n in (number % 4096 for number in range(1 << 15))]
    with pq.ParquetWriter(path, schema, use_dictionary=False, compression="none") as writer:
        writer.write_table(pa.table({"text": texts}, schema=schema), row_group_size=1 << 15)
    code = (
        "import re, sys; from data_prep.sources import parquet\n"
        "used = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) >> 10\n"
        "pieces = parquet.list_pieces(sys.argv[1]); import pyarrow.parquet; before = used()\n"
        "count = sum(len(d.text) for d in parquet.read_piece(pieces[-1]))\n"
        "print(count, used() - before)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    count, grown_mib = map(int, result.stdout.split())
    assert count == sum(map(len, texts[-(1 << 11) :]))
    assert grown_mib < 100, f"{grown_mib} MiB"
