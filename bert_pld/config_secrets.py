"""Removal of keys and passwords (`comet.api_key`) from every copy of a run's JSON that is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SECRET_KEY = re.compile(
    r"(^|[_-])(api[_-]?key|access[_-]?key|private[_-]?key|secret([_-]?key)?|(auth[_-]?)?token|passw(or)?d|credentials?)$",
    re.IGNORECASE,
)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


def without_secrets(values: Any) -> Any:
    """Return a deep copy of a JSON value without keys that hold secrets and without user names and passwords in URLs.

    A secret key is removed, not overwritten, so that the program that reads the copy uses its environment variable
    (`COMET_API_KEY`).
    """
    if isinstance(values, Mapping):
        return {k: without_secrets(v) for k, v in values.items() if not _SECRET_KEY.search(str(k))}
    if isinstance(values, (list, tuple)):
        return [without_secrets(value) for value in values]
    return _USER_IN_URL.sub("", values) if isinstance(values, str) else values
