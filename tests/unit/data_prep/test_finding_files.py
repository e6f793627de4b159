"""Which files of a folder or glob are read, and what is said of the others."""

import os
import socket

import pytest
from made_up_corpus import read_source, source_error

from data_prep.sources import Source


def write(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"{name}\n")
    return folder


def texts(argument):
    return [document.text.strip() for document in read_source(argument)]


@pytest.fixture
def linked(tmp_path):
    """A folder with a linked sub-folder, which holds a link back and is linked twice; and a linked file."""
    folder = write(tmp_path / "corpus", "a.txt")
    elsewhere = write(tmp_path / "elsewhere", "b.txt", "c.txt")
    (folder / "link").symlink_to(elsewhere)
    (folder / "same").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    (folder / "z.txt").symlink_to(write(tmp_path / "third", "file") / "file")
    return folder


def test_links_are_followed_and_each_folder_is_read_once(linked):
    assert texts(f"text={linked}") == ["a.txt", "b.txt", "c.txt", "file"]


def test_glob_finds_what_the_folder_finds(linked, monkeypatch):
    assert texts(f"text={linked}/**/*.txt") == texts(f"text={linked}")
    monkeypatch.chdir(linked)
    assert texts("text=*.txt") == ["a.txt", "file"]
    assert texts("text=l*k/[bc].txt") == ["b.txt", "c.txt"]


def test_real_folder_keeps_its_name_where_a_link_leads_to_it(tmp_path):
    write(tmp_path / "z", "x.txt")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    assert [piece.path for piece in Source.parse(f"text={tmp_path}").pieces()] == [str(tmp_path / "z" / "x.txt")]


@pytest.mark.parametrize("kind", ["text", "books", "jsonl", "parquet", "wikiextractor", "wikipedia-dump"])
@pytest.mark.parametrize("where", ["", "/sub/*", "/**/*"])
def test_broken_link_is_an_error(tmp_path, kind, where):
    (write(tmp_path / "sub", "a.txt") / "part").symlink_to("/no/such/folder")
    assert source_error(f"{kind}={tmp_path}{where}") == (
        f"{tmp_path}/sub/part: broken link to /no/such/folder; remove it, or restore its target"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes another user, who may not read a folder")
@pytest.mark.parametrize("where", ["", "/*/*.txt", "/**/*.txt", "/sub/a.txt", "/b.txt"])
def test_what_cannot_be_read_is_an_error(tmp_path, where):
    write(tmp_path, "c.txt")
    write(tmp_path / "sub", "a.txt").chmod(0o700)
    (write(tmp_path, "b.txt") / "b.txt").chmod(0o600)
    (tmp_path / "sub").chmod(0)
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError) as caught:
            Source.parse(f"text={tmp_path}{where}").pieces()
    finally:
        os.seteuid(0)
    assert str(tmp_path) in str(caught.value.filename)


def test_suffixes_in_capitals_and_of_compression_count(tmp_path):
    write(tmp_path, "a.txt", "b.TXT", "c.Txt", "d.txt.gz", "e.TXT.BZ2")
    assert texts(f"text={tmp_path}") == ["a.txt", "b.TXT", "c.Txt", "d.txt.gz", "e.TXT.BZ2"]


def test_what_is_passed_over_is_printed_in_one_line(tmp_path, capsys):
    folder = write(tmp_path / "corpus", "a.txt", "b.md", "c.parquet", "d.7z", "e.doc", ".hidden.txt")
    write(folder / ".git", "x.txt")
    assert texts(f"text={folder}") == ["a.txt"]
    assert capsys.readouterr().err == f"{folder}: passed over 6 others: .git, .hidden.txt, b.md and 3 more\n"
    write(folder / "sub", "f.txt")
    assert texts(f"text={folder}/*.txt") == ["a.txt"]
    assert capsys.readouterr().err == ""
    assert texts(f"text={folder}/[as]*") == ["a.txt"]
    assert capsys.readouterr().err == f"{folder}/[as]*: passed over 1 other: {folder}/sub\n"


def test_folder_without_matching_files_names_what_it_holds(tmp_path):
    write(tmp_path, "a.md", "b.pdf")
    assert source_error(f"text={tmp_path}") == (
        f"{tmp_path}: the folder holds no files ending in .txt (but 2 others: a.md, b.pdf)"
    )


def test_pipes_and_sockets_are_never_opened(tmp_path, capsys):
    folder = write(tmp_path / "corpus", "a.txt")
    os.mkfifo(folder / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.txt"))
        assert texts(f"text={folder}") == ["a.txt"]
    assert capsys.readouterr().err == f"{folder}: passed over 2 others: pipe.txt, socket.txt\n"
    assert source_error(f"text={folder}/pipe.txt") == (
        f"{folder}/pipe.txt: neither a file nor a folder; write the text to a file"
    )


def test_hub_in_a_local_folder_names_what_it_does_not_read(tmp_path, capsys):
    folder, elsewhere = write(tmp_path / "corpus", "a.md"), write(tmp_path / "elsewhere")
    (folder / "link").symlink_to(elsewhere)
    for name in ("part.jsonl", "PART.JSONL", "link/part.jsonl"):
        (folder / name).write_text('{"text": "A row."}\n')
    assert texts(f"hub={folder}") == ["A row."]
    assert capsys.readouterr().err == f"hub={folder}: passed over 3 others: PART.JSONL, a.md, link/part.jsonl\n"
