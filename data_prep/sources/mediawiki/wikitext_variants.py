"""Variant markup of wikis in several scripts or regions: `-{zh-hans:计算机; zh-hant:電腦}-`, also nested.

MediaWiki's LanguageConverter replaces it by the text of the reader's variant; here it is the first one. Rules that only
change the conversion elsewhere (`-{H|…}-`), the title (`-{T|…}-`) or nothing visible give no text.
"""

from __future__ import annotations

import re

DEEPEST_NESTING = 10
"""MediaWiki's limit; deeper marks are removed, and their text is kept as it is."""
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Noncharacters that stand for the marks while templates are removed, because `-{{{name}}}-` would be ambiguous."""
# An odd number of braces: of `-{{name}}-`, all belong to the template.
_MARKS = re.compile(r"-(\{(?:\{\{)*)(?!\{)|(?<!\})((?:\}\})*\})-")
_MARKED = re.compile(f"[{_OPEN}{_CLOSE}]")
_FLAGS = re.compile(r"\s*([^|:{}\n]{0,60})\|")
_HIDDEN_FLAGS = frozenset("HT-ND")
_CODE = r"(?:zh|sr|sh|gan|kk|ku|iu|shi|uz|tg|crh|wuu|ban|tly|mni)(?:-[a-z]{2,5})?"
_RULE = re.compile(rf"(?:[^;=]*=>)?\s*{_CODE}\s*:", re.IGNORECASE)


def with_marked_variants(text: str) -> str:
    """Mark the borders of variants by single characters, so that they are not mistaken for those of templates."""
    if "-{" not in text:
        return text
    text = _MARKED.sub("", text)
    return _MARKS.sub(lambda mark: _OPEN + mark[1][1:] if mark[1] else mark[2][:-1] + _CLOSE, text)


def without_variants(text: str) -> str:
    """Replace each marked variant by its visible text; a border without its counterpart becomes what it was."""
    if _OPEN not in text and _CLOSE not in text:
        return text
    out: list[str] = []
    opened: list[int] = []
    position = too_deep = 0
    for mark in _MARKED.finditer(text):
        out.append(text[position : mark.start()])
        position = mark.end()
        if mark[0] == _OPEN:
            if len(opened) == DEEPEST_NESTING:
                too_deep += 1
            else:
                opened.append(len(out))
                out.append("-{")
        elif too_deep:
            too_deep -= 1
        elif opened:
            start = opened.pop()
            inner = "".join(out[start + 1 :])
            del out[start:]
            out.append(visible_text(inner))
        else:
            out.append("}-")
    out.append(text[position:])
    return "".join(out)


def visible_text(inner: str) -> str:
    """Return what `-{inner}-` shows: the text of its first variant, or nothing if its flags hide it."""
    flags = _FLAGS.match(inner)
    if flags:
        names = {flag.strip() for flag in flags[1].split(";")}
        inner = inner[flags.end() :]
        if names & _HIDDEN_FLAGS:
            return ""
        if "R" in names:
            return inner
    if not _RULE.match(inner):
        return inner
    first = next(part for part in re.split(rf";(?={_RULE.pattern})|;\s*$", inner, flags=re.IGNORECASE) if part)
    return first[_RULE.match(first).end() :].strip()  # type: ignore[union-attr]
