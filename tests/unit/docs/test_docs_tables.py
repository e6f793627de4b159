"""Tables in the docs equal the committed result files, as scripts/docs/tables.py checks them."""

import importlib
import shutil

import pytest
from repository import REPOSITORY


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "scripts" / "docs")
    return importlib.import_module("tables")


def run(script, *arguments):
    return script.main(script.build_parser().parse_args(arguments))


def test_tables_of_the_docs_equal_their_result_files(script, capsys):
    assert run(script) == 0, capsys.readouterr().out


def test_every_marked_table_has_a_result_file(script):
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    marked = {
        (str(page.relative_to(REPOSITORY)), line.split()[3].rstrip(":"))
        for page in pages
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("<!-- table of ") and "begin" in line
    }
    assert marked == {(shown.page, shown.name) for shown in script.SHOWN}


def test_changed_figure_is_reported_and_restored(script, tmp_path, monkeypatch, capsys):
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    shutil.copy(REPOSITORY / "README.md", tmp_path)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    shown = script.SHOWN[0]
    page = tmp_path / shown.page
    table = script.tables.found_in(page, shown.name)
    digit = next(character for character in reversed(table) if character.isdigit())
    script.tables.put_into(page, shown.name, table.replace(digit, str((int(digit) + 1) % 10)))
    assert run(script) == 1
    message = f"{shown.page}: the table of {shown.name} differs from docs/results/{shown.source}; run with --write"
    assert message in capsys.readouterr().out
    assert run(script, "--write") == 0
    assert run(script) == 0
