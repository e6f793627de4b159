"""Files in CoNLL's format: a word and its tag in each line, and an empty line between sentences.

The word is the first column, and the tag the last one; what is between them is not read. Columns are separated by tabs,
or by blanks in a line without tabs. Lines of `-DOCSTART-` and comments such as `# sent_id = 4` are passed over.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

SPLITS = {
    "train": ("train",),
    "dev": ("dev", "valid", "validation", "devel", "testa"),
    "test": ("test", "testb"),
}
"""Split → the names that its file may have, before one of the suffixes or after `eng.`."""
_SUFFIXES = ("", ".txt", ".conll", ".tsv", ".iob", ".iob2", ".bio")
_BLANKS = re.compile(" +")
_SPAN_TAG = re.compile(r"O|[BILUES]-\S+")


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Words with a tag each."""

    words: list[str]
    tags: list[str]


def find_splits(data_dir: Path) -> dict[str, Path]:
    """Return the files of `train`, `dev` and, if there is one, `test`; a ValueError names what is missing."""
    if not data_dir.is_dir():
        raise ValueError(f"--data_dir {data_dir}: no such folder")
    found = {}
    for split, stems in SPLITS.items():
        names = [name for stem in stems for name in (*(stem + suffix for suffix in _SUFFIXES), f"eng.{stem}")]
        path = next((data_dir / name for name in names if (data_dir / name).is_file()), None)
        if path is not None:
            found[split] = path
        elif split != "test":
            choices = " or ".join(f"{stem}.txt" for stem in stems)
            raise ValueError(f"--data_dir {data_dir}: no {choices} (or {', '.join(_SUFFIXES[2:])})")
    return found


def read_conll(path: Path) -> list[Sentence]:
    """Return a file's sentences; a ValueError names the file and the line that is not in the format."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    columns = first = 0
    for number, line in enumerate([*text.split("\n"), ""], 1):
        line = line.rstrip("\r")
        # str.split() would also cut at a no-break space, which may stand within a word (10 000), but not in a tag.
        parts = line.split("\t") if "\t" in line else _BLANKS.split(line.strip(" "))
        *fields, tag = (part.strip(" ") for part in parts)
        fields.append(tag.strip())
        if not line.strip():
            if words:
                sentences.append(Sentence(words, tags))
                words, tags = [], []
        elif fields[0].startswith("-DOCSTART-") or _is_comment(line, fields):
            continue
        elif len(fields) < 2 or (columns and len(fields) != columns):
            expected = f"{columns} columns as line {first} has" if columns else "a word and a tag"
            raise ValueError(f"{path}, line {number}: {len(fields)} column(s) ({line[:60]!r}); must have {expected}")
        elif not fields[0] or not fields[-1]:
            raise ValueError(f"{path}, line {number}: an empty {'word' if not fields[0] else 'tag'} ({line[:60]!r})")
        else:
            if not columns:
                columns, first = len(fields), number
            words.append(fields[0])
            tags.append(fields[-1])
    if not sentences:
        raise ValueError(f"{path}: holds no sentence; each line must have a word and its tag")
    return sentences


def _is_comment(line: str, fields: list[str]) -> bool:
    """Whether a line is a comment, rather than the word `#` with a tag."""
    return line.startswith("#") and "=" in line and not _SPAN_TAG.fullmatch(fields[-1])


def are_spans(tags: set[str]) -> bool:
    """Whether tags mark spans, as in `B-PER`, rather than every word, as parts of speech do."""
    return any(_SPAN_TAG.fullmatch(tag) for tag in tags - {"O"})


def as_iobes(tags: list[str]) -> list[str]:
    """Return tags with BILOU's L- (last) and U- (unit) as the E- and S- of IOBES, which seqeval knows."""
    return [{"L-": "E-", "U-": "S-"}.get(tag[:2], tag[:2]) + tag[2:] for tag in tags]
