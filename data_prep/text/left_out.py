"""What a build leaves out of its text, counted by reason: lines or other parts, and their characters without blanks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping


def count_characters(text: str) -> int:
    """Return the number of characters other than spaces and line feeds."""
    return len(text) - text.count(" ") - text.count("\n")


@dataclasses.dataclass
class LeftOut:
    """Parts of a text that are left out, and their characters, by reason."""

    parts: Counter[str] = dataclasses.field(default_factory=Counter)
    characters: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, reason: str, text: str, parts: int = 1) -> None:
        """Count a part with a reason."""
        self.parts[reason] += parts
        self.characters[reason] += count_characters(text)

    def update(self, other: LeftOut) -> None:
        """Add the counts of another."""
        self.parts.update(other.parts)
        self.characters.update(other.characters)

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return the counts by reason, in the order of the reasons."""
        return {
            reason: {"parts": self.parts[reason], "characters": self.characters[reason]}
            for reason in sorted(self.parts)
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Mapping[str, int]]) -> LeftOut:
        """Return the counts that `to_json` gave."""
        result = cls()
        for reason, counts in content.items():
            result.parts[reason], result.characters[reason] = counts["parts"], counts["characters"]
        return result
