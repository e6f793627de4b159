"""A made-up corpus, the command that builds it, and helpers that read sources and folders."""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path

from data_prep.__main__ import main
from data_prep.sources import Source
from data_prep.sources.kind import Document

_SYLLABLES = ["ri", "sto", "mor", "har", "let", "win", "gar", "en", "cap", "mar", "sil", "bri", "vil", "mu", "dis"]
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
    """SHA-256 of every file in a folder and its sub-folders, by relative path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_source(argument: str) -> list[Document]:
    """All documents of a source as the command line names it."""
    source = Source.parse(argument)
    return [document for piece in source.pieces() for document in source.kind.read_piece(piece)]


def build(corpus: Path, output_dir: Path, *flags: str) -> int:
    vocabulary = [] if "--vocab" in flags else ["--vocab_size", "300"]
    workers = [] if "--workers" in flags else ["--workers", "1"]
    flags = ("--validation_fraction", "0.1", "--seed", "7", "--seq_length", "32", *flags)
    return main(["build", "--source", f"text={corpus}", "--output_dir", str(output_dir), *vocabulary, *workers, *flags])
