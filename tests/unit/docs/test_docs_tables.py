"""Tables in the docs equal the committed JSON: scripts/docs/tables.py on the checkout and on a changed page."""

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


def test_every_table_of_the_docs_is_what_its_json_gives(script, capsys):
    assert run(script) == 0, capsys.readouterr().out


def test_every_marked_table_has_its_json(script):
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    marked = {
        (str(page.relative_to(REPOSITORY)), line.split()[3].rstrip(":"))
        for page in pages
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("<!-- table of ") and "begin" in line
    }
    assert marked == {(shown.page, shown.name) for shown in script.SHOWN}


def test_a_changed_figure_is_noticed_and_written_back(script, tmp_path, monkeypatch, capsys):
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    shutil.copy(REPOSITORY / "README.md", tmp_path)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    shown = script.SHOWN[0]
    page = tmp_path / shown.page
    table = script.tables.found_in(page, shown.name)
    digit = next(character for character in reversed(table) if character.isdigit())
    script.tables.put_into(page, shown.name, table.replace(digit, str((int(digit) + 1) % 10)))
    assert run(script) == 1
    assert (
        f"{shown.page}: the table of {shown.name} is not what docs/results/{shown.source} gives"
        in capsys.readouterr().out
    )
    assert run(script, "--write") == 0
    assert run(script) == 0
