"""Links, file names and commands in the documentation exist."""

import functools
import importlib
import importlib.util
import re
import shlex
import sys

import pytest
from repository import REPOSITORY, blocks_of, tracked

PAGES = tracked("*.md")
FILE_NAME = re.compile(r"(?<![\w./$<*{}…-])([\w-]+(?:/[\w.-]+)*\.(?:py|sh|sbatch|json|txt|png|md))(?![\w*{}…/])")
ROOTS = ("", "bert_pld", "data_prep", "configs", "docs", "docs/results", "scripts")
SCRIPT = re.compile(r"python3? (scripts/\S+\.py)(.*)")
SHELL_SCRIPT = re.compile(r"(?:bash|source) (scripts/[\w./-]*\w)")
COMMAND = re.compile(r"(?:python -m|deepspeed .*?--module) ((?:bert_pld|data_prep|benchmarks)\S*)(.*)")


def identify(page):
    return str(page.relative_to(REPOSITORY))


def without_code(page):
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@functools.cache
def anchors_of(page):
    """Anchors as GitHub makes them: lower case, spaces to hyphens, punctuation left out."""
    titles = re.findall(r"^#+ (.*)$", without_code(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_links_resolve(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if link.startswith(("http:", "https:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{identify(page)}: {link}"
        assert not anchor or anchor in anchors_of(target), f"{identify(page)}: {link}"


MADE_BY_COMMANDS = {
    *(
        "manifest.json",
        "data_card.json",
        "metrics.jsonl",
        "diverged.json",
        "config.json",
        "state.json",
        "checksums.json",
        "vocab.txt",
    ),
    *(
        "tokenizer_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "result.json",
        "summary.json",
        "summary.md",
        "ds.json",
        "given.json",
        "loss.png",
        "paper.json",
    ),
    *("paper.png", "glue.json", "glue.png", "base.json", "trainer.json", "configs.txt", "c.json", "bench_large.json"),
    *("bert-base-uncased-vocab.txt", "run.json", "continued_cpu.json", "train.txt", "dev.txt", "test.txt"),
    *("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/dev.tsv", "qrels/test.tsv"),
}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=identify)
def test_named_files_exist(page):
    names = {path.name for path in tracked()}
    text = re.sub(r"\]\([^)]*\)|https?://\S+", "", page.read_text(encoding="utf-8"))
    for name in FILE_NAME.findall(text):
        if name in MADE_BY_COMMANDS or name.startswith(("runs/", "shards/", "glue/", "exported/")):
            continue
        found = any((REPOSITORY / root / name).exists() for root in ROOTS) or (page.parent / name).exists()
        assert found or ("/" not in name and name in names), f"{identify(page)}: {name}"


def commands_of(page):
    for block in blocks_of(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            found = COMMAND.search(line.removesuffix("'"))  # the end of `bash -c '…'`
            if found and "…" not in line and "${@" not in line:
                yield found[1], shlex.split(found[2], comments=True)


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands_of(page))], ids=identify)
def test_commands_are_accepted_by_their_parsers(page):
    for module, arguments in commands_of(page):
        if module == "benchmarks":
            parser = importlib.import_module("benchmarks.__main__").build_parser(arguments.pop(0))
        elif module == "data_prep":
            parser = importlib.import_module("data_prep.__main__").build_parser()
        else:
            parser = importlib.import_module(module).build_parser()
        parser.parse_args(arguments)


def script_commands_of(text):
    """Commands `python scripts/… …` in blocks and in code within a line, with their arguments."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", outside)]
    for line in lines:
        found = SCRIPT.search(line)
        if found and "…" not in line:
            yield found[1], shlex.split(found[2], comments=True)


def parse_script_command(name, arguments, monkeypatch):
    path = REPOSITORY / name
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module.build_parser().parse_args(arguments)


@pytest.mark.parametrize("page", [page for page in PAGES if any(script_commands_of(page.read_text()))], ids=identify)
def test_commands_of_scripts_are_accepted_by_their_parsers(page, monkeypatch):
    for name, arguments in script_commands_of(page.read_text(encoding="utf-8")):
        parse_script_command(name, arguments, monkeypatch)


def test_commands_of_scripts_are_found_and_wrong_ones_are_refused(monkeypatch, capsys):
    page = "Use `python scripts/measure/measure_packing.py --turns\n2`.\n```bash\n%s\n```\n"
    page %= "python scripts/measure/measure_packing.py --seq_length 64 \\\n    --turn 3  # a comment"
    first, second = script_commands_of(page)
    assert first == ("scripts/measure/measure_packing.py", ["--seq_length", "64", "--turn", "3"])
    assert parse_script_command(*second, monkeypatch).turns == 2
    with pytest.raises(SystemExit):
        parse_script_command(first[0], ["--rounds", "3"], monkeypatch)
    assert "unrecognized arguments: --rounds 3" in capsys.readouterr().err


@pytest.mark.parametrize("path", tracked("*.md", "*.sh", "*.sbatch", "scripts/*.py", "*.yml"), ids=identify)
def test_shell_scripts_that_are_called_exist(path):
    if path.name != "CHANGELOG.md":  # it names files of earlier releases
        for name in SHELL_SCRIPT.findall(path.read_text(encoding="utf-8")):
            assert (REPOSITORY / name).is_file(), name
