"""Made-up MediaWiki exports, plain and as single-stream or multistream bzip2."""

from __future__ import annotations

import bz2
import html
import random

from made_up_corpus import WORDS

HEAD = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="xx">\n  <siteinfo>\n'
    "    <sitename>Wikimade</sitename>\n    <namespaces>\n"
    '      <namespace key="-2" case="first-letter">Medij</namespace>\n'
    '      <namespace key="0" case="first-letter" />\n      <namespace key="1">Sprik</namespace>\n'
    '      <namespace key="6" case="first-letter">Filo</namespace>\n'
    '      <namespace key="14" case="first-letter">Kategor</namespace>\n    </namespaces>\n  </siteinfo>\n'
)
FOOT = "</mediawiki>\n"


def page(
    title: str, text: str | None, number: int, namespace: int | None = 0, extra: str = "", model: str = "wikitext"
):
    ns = "" if namespace is None else f"    <ns>{namespace}</ns>\n"
    content = '<text deleted="deleted" />' if text is None else f'<text xml:space="preserve">{html.escape(text)}</text>'
    return (
        f"  <page>\n    <title>{html.escape(title)}</title>\n{ns}    <id>{number}</id>\n{extra}    <revision>\n"
        f"      <id>{number + 1000}</id>\n      <model>{model}</model>\n      {content}\n    </revision>\n  </page>\n"
    )


def made_up_pages(count: int, seed: int = 5) -> list[str]:
    """Articles of 100 to 5,000 characters with letters outside ASCII, and some redirects and talk pages."""
    draw = random.Random(seed)
    pages = []
    for number in range(count):
        sentences = [
            f"The é'''{' '.join(draw.choices(WORDS, k=draw.randint(8, 20)))}''' is"
            f" [[{draw.choice(WORDS)}|łódź {number}]]."
            for _ in range(draw.randint(1, 30))
        ]
        text = "#REDIRECT [[Other]]" if number % 17 == 3 else "\n\n".join(sentences)
        pages.append(page(f"Title {number}", text, number, 1 if number % 13 == 5 else 0))
    return pages


def dump(pages: list[str]) -> bytes:
    return (HEAD + "".join(pages) + FOOT).encode()


def multistream(pages: list[str], pages_a_stream: int = 10) -> bytes:
    """A multistream dump like Wikimedia's: one stream for the head, one for each group of pages, one for the foot."""
    runs = ["".join(pages[first : first + pages_a_stream]) for first in range(0, len(pages), pages_a_stream)]
    return b"".join(bz2.compress(part.encode(), 1) for part in [HEAD, *runs, FOOT])
