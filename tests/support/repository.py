"""The checkout that the tests belong to, and the files that git tracks in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).resolve().parent


def tracked(*patterns: str) -> list[Path]:
    """Tracked files that match one of the patterns, as `git ls-files` reads them, and exist."""
    command = ["git", "ls-files", *patterns]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [path for line in listed.splitlines() if (path := REPOSITORY / line).exists()]
