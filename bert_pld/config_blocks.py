"""A JSON object made into a dataclass: names, with a suggestion; types, from the annotations; ranges, by `check`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints


class ConfigError(ValueError):
    """A mistake in a run's JSON, in one line."""


T = TypeVar("T")


def build_block(cls: type[T], values: Any, where: str) -> T:
    """Make a block's dataclass from its JSON object, checking names, types and ranges."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: must be an object, is {values!r}")
    hints = get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{where}.{key}: unknown key{_nearest(key, hints)}; valid: {', '.join(hints)}")
        if not _matches(value, hints[key]):
            raise ConfigError(f"{where}.{key}: {value!r}; must be {_describe(hints[key])}")
    block = cls(**{key: float(value) if _is_float(hints[key], value) else value for key, value in values.items()})
    for problem in block.check():  # type: ignore[attr-defined]
        raise ConfigError(f"{where}.{problem}")
    return block


def _nearest(key: str, valid: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(valid), n=1, cutoff=0.5)
    return f", did you mean '{near[0]}'?" if near else ""


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    arguments = get_args(hint)
    return (hint,) if get_origin(hint) is Literal or not arguments else arguments


def _matches(value: Any, hint: Any) -> bool:
    for kind in _alternatives(hint):
        if get_origin(kind) is Literal:
            if value in get_args(kind) and isinstance(value, str):
                return True
        elif kind is float:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return True
        elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return True
    return False


def _is_float(hint: Any, value: Any) -> bool:
    return float in _alternatives(hint) and isinstance(value, int)


def _describe(hint: Any) -> str:
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
    parts = [
        "one of " + ", ".join(repr(choice) for choice in get_args(kind)) if get_origin(kind) is Literal else words[kind]
        for kind in _alternatives(hint)
    ]
    return " or ".join(parts)
