"""The source kinds, by name. A new kind is one file in this folder and one line in `KINDS`."""

from __future__ import annotations

import dataclasses
import difflib

from data_prep.sources import books, hub, jsonl, parquet, python_docs, text, wikiextractor
from data_prep.sources.kind import Piece, SourceKind
from data_prep.sources.mediawiki import dump

KINDS: dict[str, SourceKind] = {
    module.KIND.name: module.KIND for module in (dump, wikiextractor, hub, parquet, jsonl, books, text, python_docs)
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A source as the user gives it: `KIND=WHERE`, or `KIND` for a kind without a path."""

    kind: SourceKind
    where: str

    @classmethod
    def parse(cls, argument: str) -> Source:
        """Parse `KIND=WHERE`; raise ValueError if the kind is unknown, or the path is missing or not allowed."""
        name, equals, where = argument.partition("=")
        if name not in KINDS:
            near = difflib.get_close_matches(name, KINDS, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"--source {argument}: unknown kind {name!r}{hint} (kinds: {', '.join(KINDS)})")
        kind = KINDS[name]
        if kind.needs_path and not where:
            raise ValueError(
                f"--source {argument}: {name} requires a path or glob, for example --source {kind.example}"
            )
        if equals and not kind.needs_path:
            raise ValueError(f"--source {argument}: {name} takes no path; write --source {name}")
        return cls(kind, where)

    def pieces(self) -> list[Piece]:
        """Return the pieces of the source, in a fixed order; raise ValueError if there is nothing to read."""
        pieces = self.kind.list_pieces(self.where)
        if not pieces:
            raise ValueError(f"--source {self}: nothing to read: the files are empty")
        return pieces

    def __str__(self) -> str:
        return f"{self.kind.name}={self.where}" if self.where else self.kind.name
