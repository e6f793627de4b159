"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as text that ends with a line feed."""
    return "\n".join(table_lines(header, rows)) + "\n"
