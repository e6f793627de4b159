"""Links in wikitext: the words a reader sees of them."""

from __future__ import annotations

import re

from data_prep.sources.site_info import CATEGORIES, FILES, SiteInfo

LONGEST_LINK_CHARACTERS = 20_000
_LINK_MARK = re.compile(r"\[\[|\]\]")
_EXTERNAL_LINK = re.compile(r"\[(?:(?:(?:https?|ftps?|irc|news|gopher):)?//|mailto:)([^\[\]\n]*)\]")
_URL = re.compile(r"<?(?:https?|ftps?)://[^\s<>\[\]{}|\"]+>?")
_MEDIA_FILE = re.compile(
    r"^[^\[\]|{}\n:]{2,30}:[^\[\]|{}\n]+\.(?:jpe?g|png|svg|gif|tiff?|og[agv]|web[mp]|pdf|djvu|mp3|wav|midi?|flac|stl|xcf)\s*$",
    re.IGNORECASE,
)
_LANGUAGE_PREFIX = re.compile(
    r"(?:[a-z]{2,3}|simple|be-x-old|be-tarask|zh-[a-z]{3,9}(?:-[a-z]{3})?|roa-[a-z]{3,4}|cbk-zam|fiu-vro|bat-smg|map-bms|nds-nl):\S"
)
_OTHER_PROJECTS = {"mw", "voy", "doi", "oeis", "rfc", "hdl", "arxiv"}


def without_links(text: str, site: SiteInfo) -> str:
    """Links replaced by their text; files, categories and links to other languages removed."""
    if "[[" not in text:
        return text
    out: list[str] = []
    opened: list[tuple[int, int]] = []
    position = length = 0
    for mark in _LINK_MARK.finditer(text):
        if mark.start() > position:
            out.append(text[position : mark.start()])
            length += mark.start() - position
        position = mark.end()
        if mark[0] == "[[":
            opened.append((len(out), length))
            out.append("")
        elif opened:
            start, length_before = opened.pop()
            if length - length_before > LONGEST_LINK_CHARACTERS:
                continue
            inner = "".join(out[start + 1 :])
            del out[start:]
            inner = text_of_link(inner, site)
            out.append(inner)
            length = length_before + len(inner)
    out.append(text[position:])
    return "".join(out)


def text_of_link(inner: str, site: SiteInfo) -> str:
    """What a reader sees of `[[inner]]`."""
    target, pipe, label = inner.partition("|")
    if "\n" in target or not target.strip():
        return inner
    if ":" in target:
        if target.lstrip().startswith(":"):
            target = target.lstrip()[1:]
        else:
            namespace, _ = site.split(target)
            if namespace in (FILES, CATEGORIES) or _MEDIA_FILE.match(target):
                return ""
            bare = target.strip()
            if not pipe and _LANGUAGE_PREFIX.match(bare) and bare.partition(":")[0] not in _OTHER_PROJECTS:
                return ""
    if pipe and label.strip():
        return label
    if pipe:
        return re.sub(r"^[^:\n]{1,30}:(?=\S)|\s*(?:\([^()]*\)|,.*)$", "", target).strip()
    return target.strip("_").replace("_", " ")


def without_external_links(text: str) -> str:
    """`[http://… label]` replaced by its label; bare addresses removed."""
    if "//" not in text and "[mailto:" not in text:
        return text
    text = _EXTERNAL_LINK.sub(_label, text)
    return _URL.sub(_after_address, text) if "://" in text else text


def _label(match: re.Match[str]) -> str:
    parts = match[1].split(None, 1)
    return parts[1] if len(parts) > 1 else ""


def _after_address(match: re.Match[str]) -> str:
    """The punctuation of the sentence that ends an address."""
    marks = ".,;:!?'" if "(" in match[0] else ".,;:!?)'"
    return match[0][len(match[0].rstrip(marks)) :]
