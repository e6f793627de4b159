"""Made-up text in ten scripts: random syllables, with the blanks, marks and full stops that each script has."""

from __future__ import annotations

import random

_HAN = [chr(0x4E00 + 11 * number) for number in range(200)]
_LATIN = [
    "Linux",
    "HTML",
    "Unicode",
    "BERT",
    "Kernel",
    "Windows",
    "Python",
    "Token",
    "Vektor",
    "Matrix",
    "Zukunft",
    "Quelle",
    "Jahr",
    "Yacht",
    "Xenon",
    "Fluss",
    "Grenze",
    "Druck",
]
_KANA = list("がぎぐげござじずぜぞだでばびぶべぼぱぴぷぺぽあいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほ")
_HANGUL = [chr(0xAC00 + 61 * number) for number in range(140)]
_THAI = [c + v for c in "กขคงจชซดตทนบปพมยรลวสหอ" for v in ("า", "ี่", "ุ้", "ิ", "ึง", "ัน", "ะ")]
_KHMER = [c + v for c in "កខគងចជដតថនបពមយរលវសហអ" for v in ("ា", "ី", "ុំ", "ែ", "្រើ", "ៅ")]
_HINDI = [c + v for c in "कखगचजटडतदनपबमयरलवसह" for v in ("ा", "ि", "ी", "ु", "ें", "ों", "")]
_TAMIL = [c + v for c in "கசடதநபமயரலவழளறன" for v in ("ா", "ி", "ீ", "ு", "ெ", "ை", "்")]
_ARABIC = [c + v for c in "أإبتثجحدرسعفقلمنهوي" for v in ("ا", "و", "ي", "ؤ", "", "ئ")]
_HEBREW = [c + v for c in "אבגדהוזחטיכלמנסעפצקרשת" for v in ("ָ", "ִ", "ו", "י", "")]
_GEORGIAN = [c + v for c in "ბგდვზთკლმნპჟრსტფქღყშჩც" for v in "აეიოუ"]

SCRIPTS: dict[str, tuple[list[str], str, str]] = {
    "zh": (_HAN + _LATIN, "", "。"), "ja": (_KANA * 2 + _HAN[:150], "", "。"),
    "ko": (_HANGUL, " ", ". "), "th": (_THAI, "", " "),
    "km": (_KHMER, "\u200b", "។ "), "hi": (_HINDI, " ", "। "), "ta": (_TAMIL, " ", ". "), "ar": (_ARABIC, " ", ". "),
    "he": (_HEBREW, " ", ". "), "ka": (_GEORGIAN, " ", ". "),
}  # fmt: skip
"""By language: syllables, what stands between words, and what ends a sentence."""


def sentence(language: str, draw: random.Random, words: tuple[int, int] = (5, 12)) -> str:
    """Return a random sentence with its full stop."""
    syllables, between, stop = SCRIPTS[language]
    made = ("".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(draw.randint(*words)))
    return between.join(made) + stop


def paragraph(language: str, draw: random.Random, sentences: int = 5) -> str:
    return "".join(sentence(language, draw) for _ in range(sentences)).strip()


def with_changed_characters(language: str, text: str, draw: random.Random, share: float) -> str:
    """Return a text with a share of its characters exchanged for the first letters of other syllables."""
    changed = list(text)
    for place in draw.sample(range(len(text)), max(1, int(share * len(text)))):
        if changed[place].isalpha():
            changed[place] = draw.choice(SCRIPTS[language][0])[0]
    return "".join(changed)
