"""The arguments of a template, taken apart."""

from __future__ import annotations

import re

_PIPE = re.compile(r"\[\[[^\[\]]*\]\]|\|")
_NAMED = re.compile(r"\s*([\w .-]{1,30}?)\s*=(.*)", re.DOTALL)


class Arguments:
    """A template's arguments: `at(1)` is the first without a name; links keep their pipes."""

    def __init__(self, text: str) -> None:
        pieces, position = [], 0
        for match in _PIPE.finditer(text):
            if match[0] == "|":
                pieces.append(text[position : match.start()])
                position = match.end()
        pieces.append(text[position:])
        self.named: dict[str, str] = {}
        self.positional: list[str] = []
        for piece in pieces[1:]:
            if "=" in piece and (match_named := _NAMED.fullmatch(piece)):
                self.named[match_named[1].strip().lower()] = match_named[2].strip()
            else:
                self.positional.append(piece.strip())

    def at(self, number: int) -> str:
        """Argument `number` from 1 on; empty where it is not given."""
        if str(number) in self.named:
            return self.named[str(number)]
        return self.positional[number - 1] if number <= len(self.positional) else ""

    def last(self) -> str:
        """The last argument without a name."""
        return self.positional[-1] if self.positional else ""
