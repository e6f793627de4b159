"""A folder in BEIR's format: documents, queries, and which documents answer which query.

    corpus.jsonl        {"_id": "d1", "title": "…", "text": "…"}    (the title may be missing)
    queries.jsonl       {"_id": "q1", "text": "…"}
    qrels/train.tsv     query-id, corpus-id, score; a score above 0 is an answer. Also dev.tsv and test.tsv

Format: Thakur et al., "BEIR", NeurIPS 2021 (arXiv:2104.08663).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from bert_pld.files import file_sha256

Judgements = dict[str, dict[str, int]]
"""Query → document → score."""


@dataclasses.dataclass(frozen=True)
class RetrievalData:
    """Texts by id, and the judgements of each split that exists."""

    documents: dict[str, str]
    """Title and text, with a space between them."""
    queries: dict[str, str]
    judgements: dict[str, Judgements]
    identity: str
    """The SHA-256 of each file."""

    def training_pairs(self) -> list[tuple[str, str]]:
        """Return the texts of each query of `train` and each of its answers, in the order of the file."""
        return [
            (self.queries[query], self.documents[document])
            for query, answers in self.judgements.get("train", {}).items()
            for document, score in answers.items()
            if score > 0 and query in self.queries and document in self.documents
        ]

    def evaluated(self, split: str) -> Judgements:
        """Return the judgements of the queries of a split that have a text and an answer."""
        return {
            query: answers
            for query, answers in self.judgements[split].items()
            if query in self.queries and any(score > 0 for score in answers.values())
        }

    def describe(self) -> str:
        """Return the sizes in one line."""
        parts = [f"{len(self.documents):,} documents", f"{len(self.queries):,} queries"]
        parts += [f"{split} {len(self.evaluated(split)):,} queries with an answer" for split in self.judgements]
        pairs = len(self.training_pairs())
        answers = sum(score > 0 for one in self.judgements.get("train", {}).values() for score in one.values())
        parts += [f"{pairs:,} training pairs"] if pairs else []
        parts += [f"{answers - pairs:,} pairs without a text left out"] if answers > pairs else []
        return ", ".join(parts)


def read_retrieval(data_dir: Path) -> RetrievalData:
    """Read a folder; a ValueError names the file, the line and what must be there."""
    if not data_dir.is_dir():
        raise ValueError(f"--data_dir {data_dir}: no such folder")
    files = [data_dir / "corpus.jsonl", data_dir / "queries.jsonl"]
    documents, queries = (_read_texts(path) for path in files)
    judgements = {}
    for split in ("train", "dev", "test"):
        path = data_dir / "qrels" / f"{split}.tsv"
        if path.is_file():
            judgements[split] = _read_judgements(path)
            files.append(path)
    if not judgements:
        raise ValueError(f"--data_dir {data_dir}: no qrels/train.tsv, qrels/dev.tsv or qrels/test.tsv")
    return RetrievalData(documents, queries, judgements, " ".join(map(file_sha256, files)))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def _read_texts(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, line in _lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"{path}, line {number}: not a line of JSON ({line[:60]!r})") from None
        if not isinstance(record, Mapping) or not all(isinstance(record.get(key), str) for key in ("_id", "text")):
            raise ValueError(f"{path}, line {number}: must be an object with the strings _id and text ({line[:60]!r})")
        title = record.get("title")
        text = f"{title if isinstance(title, str) else ''} {record['text']}".strip()
        try:
            (record["_id"] + text).encode()
        except UnicodeEncodeError as error:  # JSON can write half of a pair, which is no character.
            raise ValueError(
                f"{path}, line {number}: \\u{ord(error.object[error.start]):04x} is half of a surrogate pair; must be a"
                " whole character"
            ) from None
        if record["_id"] in texts:
            raise ValueError(f"{path}, line {number}: _id {record['_id']!r} is given twice")
        texts[record["_id"]] = text
    if not texts:
        raise ValueError(f"{path}: is empty")
    return texts


def _read_judgements(path: Path) -> Judgements:
    found: Judgements = {}
    for number, line in _lines(path):
        fields = line.split("\t")
        if number == 1 and len(fields) == 3 and not _is_number(fields[2]):
            continue  # The header.
        if len(fields) != 3 or not _is_whole(fields[2]):
            raise ValueError(
                f"{path}, line {number}: {line[:60]!r}; must be query-id, corpus-id and a whole score, by tabs"
            )
        found.setdefault(fields[0], {})[fields[1]] = int(fields[2])
    if not any(score > 0 for answers in found.values() for score in answers.values()):
        raise ValueError(f"{path}: no score is above 0")
    return found


def _is_whole(text: str) -> bool:
    return text.strip().removeprefix("-").isdecimal()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
