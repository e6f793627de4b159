"""Reading and writing `metrics.jsonl`: one JSON object a line, for each logging step and for each evaluation.

This module needs no torch, so `python -m bert_pld.status` starts at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_pld.files import write_atomically

Record = dict[str, Any]
_EVALUATION_KEY = "eval_mlm_loss"


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one line. NaN and infinity, which JSON lacks, become null."""
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(finite) + "\n")


def read_metrics(path: Path, newest: int | None = None) -> tuple[list[Record], list[Record]]:
    """Read the records of logging steps and those of evaluations, both in the order of their steps.

    At most `newest` records of each kind are read, from the end of the file; by default all. If a step was trained
    again after a restart, its newest record is returned. A last line without its newline is left out: it is still being
    written, or was cut off by a kill. Any other damaged line raises a ValueError that names file and line.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    training: dict[int, Record] = {}
    evaluations: dict[int, Record] = {}
    for number in range(len(lines), 0, -1):
        line = lines[number - 1]
        kind = evaluations if f'"{_EVALUATION_KEY}"'.encode() in line else training
        if newest is not None and len(kind) == newest:
            if len(training) == len(evaluations):
                break
            continue
        record = _parse(line)
        if record is None:
            text = line[:60].decode(errors="replace")
            raise ValueError(f"{path}, line {number}: not a line of metrics ({text!r})")
        kind.setdefault(record["step"], record)
    return [training[step] for step in sorted(training)], [evaluations[step] for step in sorted(evaluations)]


def drop_records_after(path: Path, step: int) -> None:
    """Remove the lines of steps after `step`, and damaged lines, from a file that may be missing."""
    if not path.exists():
        return
    records = ((line, _parse(line)) for line in path.read_bytes().split(b"\n"))
    kept = [line.decode("utf-8") for line, record in records if record is not None and record["step"] <= step]
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def _parse(line: bytes) -> Record | None:
    """Return a line's record, or None for a damaged line."""
    try:
        record = json.loads(line)
        record["step"] = int(record["step"])
    except (ValueError, KeyError, TypeError):
        return None
    return record
