"""Options behind the place of a source: `parquet=wiki/,column=body`, `hub=ID:CONFIG,split=validation`."""

from __future__ import annotations

import re

_OPTION = re.compile(r"^(.*),([A-Za-z_]+)=([^,]*)$", re.DOTALL)


def split_options(where: str, allowed: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Part `PLACE,name=value,…` into the place and its options, taken from the end as long as they look like one.

    A value may hold anything but a comma, a place anything but an end that looks like an option.

    Raises:
        ValueError: an option that is not allowed, is given twice or is empty, or no place before the options.
    """
    options: dict[str, str] = {}
    place = where
    while match := _OPTION.match(place):
        place, name, value = match.groups()
        if name not in allowed:
            raise ValueError(f"{where}: unknown option {name!r}; allowed: {', '.join(allowed)}")
        if name in options:
            raise ValueError(f"{where}: option {name!r} is given twice")
        if not value:
            raise ValueError(f"{where}: option {name!r} has no value")
        options[name] = value
    if not place:
        raise ValueError(f"{where}: there is no place before the options")
    return place, options


def whole_number(where: str, name: str, value: str, lowest: int) -> int:
    """The value of an option that is a number.

    Raises:
        ValueError: not a whole number, or too small.
    """
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < lowest:
        raise ValueError(f"{where}: {name}={value}: expected a whole number from {lowest}")
    return int(value)
