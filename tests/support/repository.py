"""The checkout that the tests belong to, and the files that git tracks in it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).resolve().parent


def tracked(*patterns: str) -> list[Path]:
    """Tracked files that match one of the patterns, as `git ls-files` reads them, and exist."""
    command = ["git", "ls-files", *patterns]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [path for line in listed.splitlines() if (path := REPOSITORY / line).exists()]


def blocks_of(page: Path, language: str) -> list[str]:
    """The code blocks of a Markdown page in a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
