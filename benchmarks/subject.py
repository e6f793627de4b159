"""The interface of a subject's `command.py`."""

from __future__ import annotations

import argparse
from typing import Any, Protocol


class Subject(Protocol):
    """One measurement, as a module."""

    EXAMPLE: str
    """A command line for `--help`."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the subject's own options."""

    def measure(self, options: argparse.Namespace) -> dict[str, Any]:
        """Measure and return a result that JSON can hold.

        A non-empty `failed` makes the command exit with 1 after the report is printed and the file written.
        """

    def report(self, result: dict[str, Any]) -> str:
        """Format a result, fresh or read from its file, as text."""
