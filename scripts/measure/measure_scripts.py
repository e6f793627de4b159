"""Measure what a build does with ten scripts: characters kept, [UNK], near duplicates found, by kind of source.

    python scripts/measure/measure_scripts.py --json docs/results/writing_systems_cpu.json

The text is made up: random syllables, with the blanks, marks and full stops that each script has. 40 of 240 documents
are copies of others with 1 % of the characters changed.
"""

from __future__ import annotations

import argparse
import html
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from bert_pld.cli import check_json_option, make_parser, run
from bert_pld.files import write_json
from data_prep.__main__ import main as data_prep

DOCUMENTS, COPIES, CHANGED = 200, 40, 0.01
_HEAD = '<mediawiki version="0.11"><siteinfo><sitename>Made up</sitename><namespaces><namespace key="0" /></namespaces>'

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
    """Return a paragraph of random sentences."""
    return "".join(sentence(language, draw) for _ in range(sentences)).strip()


def with_changed_characters(language: str, text: str, draw: random.Random, share: float) -> str:
    """Return a text with a share of its characters exchanged for the first letters of other syllables."""
    changed = list(text)
    for place in draw.sample(range(len(text)), max(1, int(share * len(text)))):
        if changed[place].isalpha():
            changed[place] = draw.choice(SCRIPTS[language][0])[0]
    return "".join(changed)


def measure(language: str, kind: str) -> dict[str, Any]:
    """Build a corpus of one language and kind of source, and return the shares that its data card gives."""
    draw = random.Random(11)
    texts = [[paragraph(language, draw) for _ in range(6)] for _ in range(DOCUMENTS)]
    for text in draw.sample(texts, COPIES):
        texts.append([with_changed_characters(language, part, draw, CHANGED) for part in text])
    with tempfile.TemporaryDirectory() as folder:
        place = write_source(kind, texts, Path(folder) / "source")
        out = Path(folder) / "out"
        arguments = ["--source", f"{kind}={place}", "--vocab_size", "300", "--workers", "1", "--output_dir", str(out)]
        if data_prep(["build", *arguments]):
            raise ValueError(f"{kind} in {language}: the build failed")
        card = json.loads((out / "data_card.json").read_text(encoding="utf-8"))
    read = card["sources"][0]["characters"]
    return {
        "language": language,
        "kind": kind,
        "kept": read["kept"] / read["read"],
        "unknown": card["unknown_token_rate"],
        "copies_found": card["documents"]["duplicates"]["near"] / COPIES,
        "characters_per_token": card["characters"]["kept"] / card["tokens"],
        "accents": card["vocabulary"]["accents"],
    }


def write_source(kind: str, texts: list[list[str]], folder: Path) -> Path:
    """Write documents, given as paragraphs, as a source of a kind, and return its place."""
    folder.mkdir()
    if kind == "jsonl":
        place = folder / "rows.jsonl"
        place.write_text("".join(json.dumps({"text": "\n".join(text)}) + "\n" for text in texts), encoding="utf-8")
    elif kind == "books":
        place = folder
        for number, text in enumerate(texts):
            (folder / f"{number:04d}.txt").write_text("\n".join(text), encoding="utf-8")
    else:
        place = folder / "dump.xml"
        pages = (
            f"<page><title>T{number}</title><ns>0</ns><id>{number}</id><revision><id>{number}</id>"
            f"<model>wikitext</model><text>{html.escape(chr(10) * 2).join(text)}</text></revision></page>"
            for number, text in enumerate(texts)
        )
        place.write_text(f"{_HEAD}</siteinfo>{''.join(pages)}</mediawiki>", encoding="utf-8")
    return place


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    what = "Measure what a build does with ten scripts."
    parser = make_parser("scripts.measure.measure_scripts", what, "python scripts/measure/measure_scripts.py")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def main(options: argparse.Namespace) -> int:
    """Measure all languages and kinds."""
    check_json_option(options.json)
    kinds = ("wikipedia-dump", "books", "jsonl")
    result = {"documents": DOCUMENTS, "copies": COPIES, "changed": CHANGED}
    result["builds"] = [measure(language, kind) for language in SCRIPTS for kind in kinds]
    if options.json:
        write_json(options.json, result)
    return 0


if __name__ == "__main__":
    run(main, build_parser())
