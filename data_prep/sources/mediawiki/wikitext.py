"""Wikitext to prose: the running text of an article as a reader sees it, without markup.

The passes follow MediaWiki's: comments and extension tags, templates, variants, tables, links, HTML, quotes and
entities, lines. Each pass searches for its markup with one regular expression and keeps its own stack. Its time is
therefore linear in the length of the text, even with unclosed markup.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from data_prep.sources.mediawiki.article_prose import prose_of_lines, without_entities
from data_prep.sources.mediawiki.site_info import SiteInfo
from data_prep.sources.mediawiki.wikitext_inline import (
    SUPERSCRIPTS,
    text_of_latex,
    without_external_links,
    without_links,
)
from data_prep.sources.mediawiki.wikitext_templates import DROPPED, expand, is_disambiguation, name_of
from data_prep.sources.mediawiki.wikitext_variants import with_marked_variants, without_variants
from data_prep.text.left_out import LeftOut

DEEPEST_NESTING = 40
"""MediaWiki's limit; templates at a greater depth are dropped."""
LONGEST_TEMPLATE_CHARACTERS = 100_000

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_OPAQUE = (
    "ref|references|math|chem|ce|nowiki|pre|gallery|timeline|score|syntaxhighlight|source|imagemap|hiero|graph|mapframe|"
    "maplink|templatedata|inputbox|categorytree|includeonly|table|style|script|indicator|section|dynamicpagelist|"
    "templatestyles|charinsert|phonos|abschnitt"
)
_OPAQUE_TAG = re.compile(rf"<(/?)({_OPAQUE})(?![\w-])([^<>]*)>", re.IGNORECASE)
_BRACES = re.compile(r"\{{2,}|\}{2,}")
_TABLE_MARK = re.compile(r"^[ \t:*#]*(?:\{\||(\|\}(?!\})))", re.MULTILINE)
_HATNOTE = re.compile(r"^:+''(?!')[^\n]*''[ \t]*(?:\.[ \t]*)?$", re.MULTILINE)
_SIDE_TABLE = re.compile(
    r"infobox|toccolours|taxobox|navbox|metadata|vertical-navbox|sidebar|float:\s?right|align=\W?right", re.IGNORECASE
)
_END_OF_UNCLOSED_TABLE = re.compile(r"\n(?=={1,6}[^=\n])|\n[ \t]*\n(?=[^|!{\s])")
_HIDDEN = re.compile(r"<(span|div)\b[^<>]{0,200}?display:\s?none[^<>]{0,200}>[^<>]{0,2000}</\1>", re.IGNORECASE)
_BREAK = re.compile(r"(?:<br\s*/?>\s*){2,}|<br\s*/?>[ \t]*\n|(?<=[.!?…。！？।۔؟။។])[ \t]*<br\s*/?>", re.IGNORECASE)
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]{0,20})(?:[\s/][^<>]*)?>")
_SUPERSCRIPT = re.compile(r"<sup>\s*([+\-−–]?\d{1,4})\s*</sup>", re.IGNORECASE)
_SWITCH = re.compile(r"__[^\W\d_]{2,30}__")
_QUOTES = re.compile(r"'{2,}")
_ESCAPED = str.maketrans({mark: f"&#{ord(mark)};" for mark in "[]{}|'<>=*#:;_!"})
_BLOCK_TAGS = {
    "p", "div", "blockquote", "center", "table", "tr", "td", "th", "ul", "ol", "li", "dl", "dt", "dd", "poem", "hr",
    "h1", "h2", "h3", "h4", "h5", "h6", "caption",
}  # fmt: skip
_TEXT_OF_TAG = {"br": " ", **dict.fromkeys(_BLOCK_TAGS, "\n")}


class Article(NamedTuple):
    """An article without its markup."""

    prose: str
    """Paragraphs separated by a line feed."""
    is_disambiguation: bool
    is_list: bool
    """True if the title says so, or nearly all text is in lists and tables."""
    left_out: LeftOut
    """What is not in the prose, by reason; templates, tables and other markup do not count."""


def article_of_wikitext(text: str, title: str, site: SiteInfo) -> Article:
    """Convert an article. Its title is the text of `{{PAGENAME}}`, and can reveal a list or a disambiguation page."""
    text = with_marked_variants(without_opaque_tags(without_comments(text)))
    text, disambiguation = without_templates(text, title)
    text = without_variants(text)
    if disambiguation or is_disambiguation(title, text):
        return Article("", True, False, LeftOut())
    text, table_characters = without_tables(without_hatnotes(text))
    text = without_html(without_external_links(without_links(text, site)))
    lines = without_entities(without_entities(without_quotes(text)))
    prose, is_list, left_out = prose_of_lines(lines, title, table_characters)
    return Article(prose, False, is_list, left_out)


def without_comments(text: str) -> str:
    """Remove `<!-- … -->`; an unclosed comment ends with the text."""
    text = text.replace("\r\n", "\n")
    return _COMMENT.sub("", text) if "<!--" in text else text


def without_opaque_tags(text: str) -> str:
    """Remove references, galleries and other extension tags with their content; keep formulas and `<nowiki>`."""
    tags = list(_OPAQUE_TAG.finditer(text)) if "<" in text else []
    if not tags:
        return text
    closing_of: dict[int, int] = {}
    next_closing: dict[str, int] = {}
    for index in range(len(tags) - 1, -1, -1):
        name = tags[index][2].lower()
        if tags[index][1]:
            next_closing[name] = index
        elif name in next_closing and not tags[index][3].endswith("/"):
            closing_of[index] = next_closing[name]
    kept, position, index = [], 0, 0
    while index < len(tags):
        tag = tags[index]
        kept.append(text[position : tag.start()])
        position, name = tag.end(), tag[2].lower()
        if index in closing_of:
            closing = tags[closing_of[index]]
            kept.append(_visible_content(name, text[tag.end() : closing.start()]))
            position, index = closing.end(), closing_of[index]
        elif name == "ref" and not tag[1] and not tag[3].endswith("/"):
            line_end = text.find("\n", position)
            position = len(text) if line_end < 0 else line_end
            while index + 1 < len(tags) and tags[index + 1].start() < position:
                index += 1
        index += 1
    kept.append(text[position:])
    return "".join(kept)


def _visible_content(name: str, content: str) -> str:
    """Return the visible part of an extension tag's content, with markup characters escaped."""
    if name in ("math", "ce", "chem"):
        return text_of_latex(content).translate(_ESCAPED)
    if name == "nowiki":
        return content.translate(_ESCAPED)
    return "\n" if name in ("table", "pre", "syntaxhighlight", "source") and "\n" in content else ""


def without_templates(text: str, title: str) -> tuple[str, bool]:
    """Remove templates, except those that belong to a sentence; also return whether one marks a disambiguation page."""
    if "{{" not in text:
        return text, False
    out: list[str] = []
    opened: list[tuple[int, int]] = []
    disambiguation = False
    position = 0
    for mark in _BRACES.finditer(text):
        if mark.start() > position:
            out.append(text[position : mark.start()])
        position = mark.end()
        count = position - mark.start()
        if text[mark.start()] == "{":
            opened.append((len(out), count))
            out.append("")
            continue
        while count >= 2 and opened:
            start, available = opened.pop()
            used = 3 if min(count, available) >= 3 else 2
            count -= used
            expansion = ""
            head = out[start + 1] if len(out) > start + 1 else ""
            name = name_of(head)
            if used == 2 and len(opened) < DEEPEST_NESTING:
                disambiguation = disambiguation or is_disambiguation(name=name)
                if name not in DROPPED and sum(map(len, out[start:])) <= LONGEST_TEMPLATE_CHARACTERS:
                    expansion = expand(name, "".join(out[start + 1 :]), title)
            del out[start:]
            if available - used >= 2:
                opened.append((len(out), available - used))
                out.append("")
            if expansion:
                out.append(expansion)
    out.append(text[position:])
    return "".join(out), disambiguation


def without_hatnotes(text: str) -> str:
    """Remove notes that lead to other articles: indented italic lines with a link (`:''For the city, see [[…]].''`)."""
    return _HATNOTE.sub(lambda match: "" if "[[" in match[0] else match[0], text) if ":''" in text else text


def without_tables(text: str) -> tuple[str, int]:
    """Remove `{| … |}`, also nested ones; an unclosed table ends before the next paragraph or heading.

    Also return the number of characters removed in tables other than infoboxes and side tables.
    """
    if "{|" not in text:
        return text, 0
    marks = list(_TABLE_MARK.finditer(text))
    closing_of: dict[int, int] = {}
    opened: list[int] = []
    for mark in marks:
        if not mark[1]:
            opened.append(mark.start())
        elif opened:
            closing_of[opened.pop()] = mark.end()
    kept, position, removed = [], 0, 0
    for mark in marks:
        if mark.start() < position or mark[1]:
            continue
        kept.append(text[position : mark.start()])
        end = closing_of.get(mark.start())
        if end is None:
            found = _END_OF_UNCLOSED_TABLE.search(text, mark.end())
            end = found.start() if found else len(text)
        first_line = text[mark.start() : mark.start() + 1000].partition("\n")[0]
        removed += 0 if _SIDE_TABLE.search(first_line) else end - mark.start()
        position = end
    kept.append(text[position:])
    return "".join(kept), removed


def without_html(text: str) -> str:
    """Remove tags; short superscript numbers become Unicode superscripts, and block elements begin a new line."""
    if "<" in text:
        if "display" in text:
            text = _HIDDEN.sub("", text)
        text = _SUPERSCRIPT.sub(lambda match: match[1].translate(SUPERSCRIPTS), text)
        if "<br" in text or "<BR" in text:
            text = _BREAK.sub("\n\n", text)
        text = _TAG.sub(lambda match: _TEXT_OF_TAG.get(match[2].lower(), ""), text)
    return _SWITCH.sub("", text) if "__" in text else text


def without_quotes(text: str) -> str:
    """Remove bold and italic marks. If a line has an odd number of each, `l'''amour''` is l' followed by italics."""
    if "''" not in text:
        return text
    return "\n".join(_unquoted(line) if "'''" in line else line.replace("''", "") for line in text.split("\n"))


def _unquoted(line: str) -> str:
    sizes = [len(run) for run in _QUOTES.findall(line)]
    bold = sum(size >= 3 for size in sizes)
    italic = sum(size == 2 or size >= 5 for size in sizes)
    chosen = None
    if bold % 2 and italic % 2:
        runs = [match.start() for match in _QUOTES.finditer(line) if len(match[0]) == 3]
        wanted: tuple[Callable[[int], bool], ...] = (
            lambda at: (at >= 2 and line[at - 1] != " " and line[at - 2] == " ") or at == 1,
            lambda at: at >= 2 and line[at - 1] != " ",
        )
        chosen = next((at for test in wanted for at in runs if test(at)), None)

    def replaced(match: re.Match[str]) -> str:
        if match.start() == chosen:
            return "'"
        return "'" * max(0, len(match[0]) - 5) if len(match[0]) != 4 else "'"

    return _QUOTES.sub(replaced, line)
