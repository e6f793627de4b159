"""Compare converters from wikitext to prose on a dump: speed, amount of prose, remaining markup.

    pip install mwparserfromhell wikitextparser

The same rules for lines follow each converter. The converters run in turns, and the fastest turn of each counts, in
processor time.
"""

from __future__ import annotations

import argparse
import functools
import html
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator
from unittest import mock

from bert_pld.cli import make_parser, require_positive, run
from data_prep.sources.mediawiki import dump as wikipedia_dump
from data_prep.sources.mediawiki.article_prose import prose_of_lines
from data_prep.sources.mediawiki.site_info import SiteInfo
from data_prep.sources.mediawiki.wikitext import (
    Article,
    article_of_wikitext,
    without_comments,
    without_opaque_tags,
    without_tables,
    without_templates,
)

MARKS = ("[[", "]]", "{{", "}}", "<ref", "{|", "|-", "|}", "&nbsp;", "thumb|", "'''", "http")
Converter = Callable[[str, str, SiteInfo], str]


def own_passes(text: str, title: str, site: SiteInfo) -> str:
    """Convert with the project's passes and rules."""
    return article_of_wikitext(text, title, site).prose


def mwparserfromhell(text: str) -> str:
    """Convert with `strip_code`, which keeps file and category links as text."""
    return str(importlib.import_module("mwparserfromhell").parse(text).strip_code())


def wikitextparser(text: str) -> str:
    """Convert with `plain_text`, which keeps the content of references as text."""
    return str(importlib.import_module("wikitextparser").parse(text).plain_text())


def parsed(parse: Callable[[str], str], text: str, title: str, site: SiteInfo, prepare: bool = False) -> str:
    """Convert with a parser and the project's rules for lines, and before them its passes up to tables if `prepare`."""
    if prepare:
        text = without_tables(without_templates(without_opaque_tags(without_comments(text)), title)[0])[0]
    return prose_of_lines(html.unescape(parse(text)), title, 0)[0]


def installed_converters() -> dict[str, Converter]:
    """Return the converters by name; print the parsers that are not installed."""
    converters: dict[str, Converter] = {"own passes": own_passes}
    for parse in (mwparserfromhell, wikitextparser):
        name = parse.__name__
        if importlib.util.find_spec(name):
            converters[name] = functools.partial(parsed, parse)
            converters[f"own passes up to tables, then {name}"] = functools.partial(parsed, parse, prepare=True)
        else:
            print(f"{name}: not installed, skipped")
    return converters


def articles(path: str) -> Iterator[tuple[str, str, SiteInfo]]:
    """Yield (wikitext, title, site) of the pages that the source would convert."""
    converted: list[tuple[str, str, SiteInfo]] = []

    def keep(text: str, title: str, site: SiteInfo) -> Article:
        converted.append((text, title, site))
        return Article("", False, False)

    with mock.patch.object(wikipedia_dump, "article_of_wikitext", keep):
        for piece in wikipedia_dump.list_pieces(path):
            for _ in wikipedia_dump.read_piece(piece):
                yield from converted
                converted.clear()


def main(options: argparse.Namespace) -> None:
    """Print one line of a Markdown table for each converter."""
    require_positive(options, "articles", "turns")
    chosen = list(itertools.islice(articles(options.dump), options.articles))
    size = sum(len(text.encode()) for text, _, _ in chosen)
    converters = installed_converters()
    seconds = dict.fromkeys(converters, float("inf"))
    results: dict[str, list[str]] = {}
    for _, (name, convert) in itertools.product(range(options.turns), converters.items()):
        began = time.process_time()
        results[name] = [convert(*article) for article in chosen]
        seconds[name] = min(seconds[name], time.process_time() - began)
    print(f"{len(chosen)} articles, {size / 1e6:.2f} MB of wikitext\n")
    print("| converter | MB/s | articles/s | prose, characters | remaining markup per 100,000 characters |")
    print("|---|---|---|---|---|")
    for name, texts in results.items():
        characters = sum(map(len, texts))
        counts = {mark: sum(text.count(mark) for text in texts) for mark in MARKS}
        left = ", ".join(f"`{mark}` {n * 1e5 / characters:.2f}" for mark, n in counts.items() if n) or "none"
        speed = f"{size / 1e6 / seconds[name]:.1f} | {len(chosen) / seconds[name]:.0f}"
        print(f"| {name} | {speed} | {characters:,} | {left.replace('|', chr(92) + '|')} |")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser: the dump, and how much of it to convert."""
    dump = "enwiki-pages-articles1.xml-p1p41242.bz2"
    example = f"python scripts/measure/compare_wikitext_parsers.py {dump} --articles 200"
    parser = make_parser("scripts.measure.compare_wikitext_parsers", __doc__, example)
    parser.add_argument("dump", help="a MediaWiki export, .xml or .xml.bz2")
    parser.add_argument("--articles", type=int, default=200, help="articles, from the beginning (default: 200)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each converter (default: 3)")
    return parser


if __name__ == "__main__":
    run(main, build_parser())
