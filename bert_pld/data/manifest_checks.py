"""Checks the values of a manifest: a data directory may come from anybody, and JSON can hold any type anywhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

_SMALLEST = {"vocabulary_size": 1, "seq_length": 1, "seed": -(2**63)}
"""Field → smallest value; 0 for all other integers."""
_LARGEST = 2**63 - 1
_ROLES = ("pad", "cls", "sep", "mask")


def manifest_fault(manifest: Any) -> str | None:
    """Return the first value of a `bert_pld.data.shards.Manifest` that is not allowed, with what is; None if none."""
    return next(_faults(manifest), None)


def _faults(manifest: Any) -> Iterator[str]:
    yield from _field_faults("attributes", manifest.attributes)
    seen: set[str] = set()
    for split, records in manifest.splits.items():
        for number, record in enumerate(records):
            yield from _field_faults(f"splits.{split}[{number}]", record)
            if record.file in seen:
                yield f"lists {record.file} twice; a shard may be in one split only, once"
            seen.add(record.file)
    for name in ("documents", "special_tokens"):
        counts = getattr(manifest, name)
        if not isinstance(counts, dict):
            yield f"{name} is {repr(counts)[:60]}; must be an object"
            return
        yield from (fault for key, value in counts.items() for fault in _integer_faults(f"{name}.{key}", value, 0))
    if missing := [role for role in _ROLES if role not in manifest.special_tokens]:
        yield f"special_tokens has no {', '.join(missing)}; required: {', '.join(_ROLES)}"
    mean = manifest.attended_tokens
    if mean is not None and not (type(mean) in (int, float) and math.isfinite(mean) and mean >= 0):
        yield f"attended_tokens is {repr(mean)[:60]}; must be a number >= 0"


def _field_faults(where: str, instance: Any) -> Iterator[str]:
    """Yield the fields of a dataclass of texts, integers and booleans that have another type than declared."""
    for field in dataclasses.fields(instance):
        value, place = getattr(instance, field.name), f"{where}.{field.name}"
        if field.type == "int":
            yield from _integer_faults(place, value, _SMALLEST.get(field.name, 0))
        elif type(value).__name__ != field.type:
            yield f"{place} is {repr(value)[:60]}; must be a {'text' if field.type == 'str' else field.type}"


def _integer_faults(place: str, value: Any, smallest: int) -> Iterator[str]:
    if type(value) is not int or not smallest <= value <= _LARGEST:
        yield f"{place} is {repr(value)[:60]}; must be an integer >= {smallest}"
