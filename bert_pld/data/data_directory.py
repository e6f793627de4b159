"""Which directory a run reads: the one given, or its part for the run's sequence length.

A build for several lengths writes `DIR/seq_128`, `DIR/seq_512`, …, each a data directory of its own.
"""

from __future__ import annotations

import re
from pathlib import Path

from bert_pld.data.safety import refuse_links_out
from bert_pld.data.shards import MANIFEST_NAME

_OF_A_LENGTH = re.compile(r"seq_(\d+)")


def resolve_data_dir(data_dir: str | Path, seq_length: int) -> Path:
    """The data directory for sequences of `seq_length` tokens.

    Args:
        data_dir: a data directory, or one that holds `seq_<S>` directories and no manifest.
        seq_length: of the run (`data.seq_length`).

    Returns:
        `data_dir/seq_<seq_length>` in the second case, otherwise `data_dir` as given: what is wrong with it is said by
        those who read it.

    Raises:
        ValueError: there are `seq_<S>` directories, but none of this length, or it is a link out of `data_dir`.
    """
    directory = Path(data_dir)
    if (directory / MANIFEST_NAME).exists() or not directory.is_dir():
        return directory
    found = [match for path in directory.iterdir() if path.is_dir() and (match := _OF_A_LENGTH.fullmatch(path.name))]
    lengths = sorted({int(match[1]): match[0] for match in found}.items())
    if not lengths:
        return directory
    for length, name in lengths:
        if length == seq_length:
            refuse_links_out(directory, [name])
            return directory / name
    raise ValueError(
        f"data directory {directory}: no seq_{seq_length} for data.seq_length {seq_length}; there are"
        f" {', '.join(name for _, name in lengths)}"
    )
