"""Links, file names and commands in the documentation exist."""

import functools
import importlib
import re
import shlex

import pytest
from repository import REPOSITORY, blocks_of, tracked

PAGES = tracked("*.md")
FILE_NAME = re.compile(r"(?<![\w./$<*{}…-])([\w-]+(?:/[\w.-]+)*\.(?:py|sh|sbatch|json|txt|png|md))(?![\w*{}…/])")
ROOTS = ("", "bert_pld", "data_prep", "configs", "docs", "docs/results", "scripts")
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
    *("manifest.json", "data_card.json", "metrics.jsonl", "config.json", "state.json", "checksums.json", "vocab.txt"),
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
