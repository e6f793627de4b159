"""A made-up corpus, the command that builds it, and helpers that read sources and folders."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.__main__ import main
from data_prep.sources import Source
from data_prep.sources.kind import Document

_SYLLABLES = ["ri", "sto", "mor", "har", "let", "win", "gar", "en", "cap", "mar", "sil", "bri", "vil", "mu", "dis"]
_SMALL_BUILD = """
import sys
import data_prep.plan, data_prep.rows.splitting
from data_prep.__main__ import main
data_prep.plan.READING_TASK_BYTES, data_prep.rows.splitting.GROUP_BYTES = 1 << 14, 1 << 13
{more}
sys.exit(main(sys.argv[1:]))
"""
WORDS = ["".join(parts) for parts in itertools.product(_SYLLABLES, _SYLLABLES, ["ver", "ne"])]


def made_up_documents(count: int, seed: int, sentences: tuple[int, int] = (3, 14)) -> list[str]:
    draw = random.Random(seed)
    documents = []
    for number in range(count):
        lines = [
            f"The {' '.join(draw.choices(WORDS, k=draw.randint(3, 18)))} number {number}."
            for _ in range(draw.randint(*sentences))
        ]
        documents.append("\n".join(lines))
    return documents


def write_corpus(folder: Path, files: int = 4, documents: int = 40) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        (folder / f"part_{number}.txt").write_text("\n\n".join(made_up_documents(documents, number)) + "\n")
    return folder


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder and its sub-folders, by relative path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_source(argument: str) -> list[Document]:
    """Return all documents of a source, `KIND=WHERE`."""
    source = Source.parse(argument)
    return [document for piece in source.pieces() for document in sound(source.kind.read_piece(piece))]


def sound(documents: Iterable[Document]) -> Iterator[Document]:
    """Yield documents, and raise ValueError at the first bad row, as a build does."""
    for document in documents:
        if document.fault is not None:
            raise ValueError(document.fault())
        yield document


def source_error(argument: str) -> str:
    """Return the message of the ValueError that reading a source raises."""
    with pytest.raises(ValueError) as caught:
        read_source(argument)
    return str(caught.value)


def card_of(data_dir: Path) -> dict[str, Any]:
    return json.loads((data_dir / "data_card.json").read_text())


def build_arguments(corpus: Path, output_dir: Path, *flags: str) -> list[str]:
    vocabulary = [] if "--vocab" in flags else ["--vocab_size", "300"]
    flags = ("--workers", "1", "--validation_fraction", "0.1", "--seed", "7", "--seq_length", "32", *flags)
    return ["build", "--source", f"text={corpus}", "--output_dir", str(output_dir), *vocabulary, *flags]


def build(corpus: Path, output_dir: Path, *flags: str) -> int:
    return main(build_arguments(corpus, output_dir, *flags))


def start_build(*arguments: object, more: str = "", **options: Any) -> subprocess.Popen[str]:
    """Start a build with small tasks in a separate process; `more` is code that runs before it."""
    command = [sys.executable, "-c", _SMALL_BUILD.format(more=more), *build_arguments(*arguments)]
    return subprocess.Popen(command, text=True, **options)
