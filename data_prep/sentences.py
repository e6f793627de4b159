"""Sentence segmentation, by the library `sentencex` (rules and abbreviations by language, in Rust)."""

from __future__ import annotations

import re

import sentencex

LONG_SENTENCE_CHARACTERS = 300
_WORD = re.compile(r"\w")
_QUOTES = "\"'“”‘’«»„"


def split_sentences(text: str, language: str = "en") -> list[str]:
    """The sentences of a text, in order, stripped; a line feed always ends one.

    What holds neither a letter nor a digit is left out.

    Args:
        text: paragraphs separated by line feeds.
        language: ISO 639 code; it chooses the abbreviations that do not end a sentence.
    """
    return [
        stripped
        for paragraph in text.split("\n")
        for sentence in sentencex.segment(language, paragraph)
        for part in (_inside_quotes(sentence, language) if len(sentence) > LONG_SENTENCE_CHARACTERS else (sentence,))
        if (stripped := part.strip()) and _WORD.search(stripped)
    ]


def _inside_quotes(sentence: str, language: str) -> list[str]:
    """Split a long speech too: the segmenter keeps what stands between quotation marks together."""
    body = sentence.rstrip()
    opening = len(body) - len(body.lstrip(_QUOTES))
    closing = len(body) - len(body.rstrip(_QUOTES))
    if not opening and not closing:
        return [sentence]
    parts = list(sentencex.segment(language, body[opening : len(body) - closing]))
    parts[0] = body[:opening] + parts[0]
    parts[-1] += body[len(body) - closing :]
    return parts
