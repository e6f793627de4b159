"""Links and formulas in wikitext, as the text that a reader sees."""

from __future__ import annotations

import re
from html.entities import html5

from data_prep.sources.mediawiki.site_info import CATEGORIES, FILES, SiteInfo

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
LONGEST_FORMULA_CHARACTERS = 200
"""Longer formulas are removed."""
# Commands of LaTeX with the name of the character in HTML.
_NAMED_AS_IN_HTML = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega Gamma"
    " Delta Theta Lambda Xi Pi Sigma Phi Psi Omega times pm mp le leq ge geq ne approx equiv propto in notin subset"
    " subseteq cup cap emptyset rightarrow mapsto leftarrow Rightarrow leftrightarrow forall wedge vee nabla sum prod"
    " int ell prime langle rangle otimes oplus"
)
_FUNCTIONS = "sin cos tan log ln exp lim max min mod"
_WORDS = {
    **{name: html5[f"{name};"] for name in _NAMED_AS_IN_HTML.split()}, **{name: name for name in _FUNCTIONS.split()},
    "varepsilon": "ε", "vartheta": "θ", "varphi": "φ", "infty": "∞", "cdot": "·", "neq": "≠", "sim": "~", "to": "→",
    "exists": "∃", "neg": "¬", "land": "∧", "lor": "∨", "partial": "∂", "ldots": "…", "dots": "…", "cdots": "⋯",
    "hbar": "ħ", "circ": "∘", "degree": "°", "quad": " ", "qquad": " ", "sqrt": "√",
}  # fmt: skip
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]{0,60})\}\s*\{([^{}]{0,60})\}")
_RAISED_NUMBER = re.compile(r"\^\s*\{?\s*(-?\d{1,3})\s*\}?")
_COMMAND = re.compile(r"\\([A-Za-z]+)\s*")
SUPERSCRIPTS = str.maketrans("0123456789+-−–", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻")


def without_links(text: str, site: SiteInfo) -> str:
    """Replace links by their text; remove files, categories and links to other languages."""
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
    """Return the visible text of `[[inner]]`."""
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
        return re.sub(r"^[^:\n]{1,30}:(?=\S)|(?<!\s)\s*(?:\([^()]*\)|,.*)$", "", target).strip()
    return target.strip("_").replace("_", " ")


def without_external_links(text: str) -> str:
    """Replace `[http://… label]` by its label; remove bare URLs."""
    if "//" not in text and "[mailto:" not in text:
        return text
    text = _EXTERNAL_LINK.sub(lambda match: "".join(match[1].split(None, 1)[1:]), text)
    return _URL.sub(_punctuation_after_url, text) if "://" in text else text


def _punctuation_after_url(match: re.Match[str]) -> str:
    """Return the punctuation at the end of a URL, which belongs to the sentence."""
    marks = ".,;:!?'" if "(" in match[0] else ".,;:!?)'"
    return match[0][len(match[0].rstrip(marks)) :]


def text_of_latex(formula: str) -> str:
    r"""Return a formula as plain characters in one line, or an empty string if it is long or has several lines.

    `\alpha \in \mathbb{R}^2` becomes `α ∈ R²`, so that the sentence around a formula stays complete.
    """
    formula = " ".join(formula.split())
    if len(formula) > LONGEST_FORMULA_CHARACTERS or r"\begin" in formula or r"\\" in formula:
        return ""
    formula = _FRACTION.sub(r"\1/\2", formula)
    formula = _RAISED_NUMBER.sub(lambda match: match[1].translate(SUPERSCRIPTS), formula)
    formula = _COMMAND.sub(lambda match: _WORDS.get(match[1], ""), formula)
    for mark in ("{", "}", "$", "\\,", "\\;", "\\!", "\\:", "\\ ", "\\", "&"):
        formula = formula.replace(mark, " " if mark == "\\ " else "")
    return " ".join(formula.replace("~", " ").split())
