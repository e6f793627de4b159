"""A finished build: whether a directory holds the result of a plan, and whether its inputs and shards have changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from bert_pld.data.shards import MANIFEST_NAME, Manifest
from data_prep.data_card_page import DATA_CARD_NAME
from data_prep.plan import BuildPlan


def is_finished(output_dir: Path, plan: BuildPlan) -> bool:
    """Return whether `output_dir` holds the result of this plan; shards and contents of inputs are not compared."""
    for data_dir in plan.arguments.data_dirs(output_dir).values():
        card = data_dir / DATA_CARD_NAME
        if not card.is_file() or not (data_dir / MANIFEST_NAME).is_file():
            return False
        try:
            if json.loads(card.read_text(encoding="utf-8"))["build"] != plan.identity():
                return False
        except (ValueError, TypeError, KeyError):
            return False
    return True


def require_unchanged(output_dir: Path, plan: BuildPlan) -> None:
    """Raise a ValueError if an input has changed since a finished build, or a shard is missing or has another size.

    An input counts as changed if its modification time is later than the manifest's, as in an unfinished build.
    """
    data_dirs = plan.arguments.data_dirs(output_dir).values()
    finished = min((data_dir / MANIFEST_NAME).stat().st_mtime for data_dir in data_dirs)
    for path in dict.fromkeys(piece.path for pieces in plan.tasks for piece in pieces):
        if os.path.exists(path) and os.stat(path).st_mtime > finished:
            raise ValueError(
                f"--output_dir {output_dir}: holds a build of an older {path}; nothing was changed; choose a new or"
                " empty directory"
            )
    for data_dir in data_dirs:
        for records in Manifest.read(data_dir, follow_links=True).splits.values():
            for record in records:
                shard = data_dir / record.file
                size = shard.stat().st_size if shard.is_file() else None
                if size != record.bytes:
                    what = "is missing" if size is None else f"has {size} bytes instead of {record.bytes}"
                    raise ValueError(
                        f"--output_dir {output_dir}: holds this build, but {shard} {what}; nothing was changed;"
                        " choose a new or empty directory"
                    )
