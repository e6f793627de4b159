"""Tables of the machine code of kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.markdown import markdown_table

_BEFORE = Path(__file__).resolve().parent.parent.parent / "docs" / "results" / "kernels_before.json"
_NAMED = {"kernel", "hidden_size", "dtype", "capability"}
_FIGURES = {
    "registers": "registers",
    "shared_bytes": "shared memory",
    "instructions_per_element": "instructions an element",
    "warps_per_multiprocessor": "warps a multiprocessor",
}
_SHOWN = ("norm backward", "branch norm forward", "branch norm backward", "scatter norm gather backward")


def machine_code(after: list[dict[str, Any]]) -> str:
    """Return the table of add_norm's kernels from `compile_kernels --json`, with the figures before the change."""
    before = {_key(one): one for one in json.loads(_BEFORE.read_text(encoding="utf-8"))}
    rows = []
    for one in after:
        if one["kernel"] not in _SHOWN or one["capability"] not in (90, 100):
            continue
        figures = [(before[_key(one)][name], one[name]) for name in _FIGURES]
        cells = [f"{old:,} → {new:,}" if old != new else f"{new:,}" for old, new in figures]
        rows.append([one["kernel"], f"{one['hidden_size']:,}", f"sm_{one['capability']}", *cells])
    return markdown_table(["", "H", "", *_FIGURES.values()], rows)


def embeddings(found: list[dict[str, Any]]) -> str:
    """Return the table of the embeddings' kernels on sm_90 from `compile_kernels --json`."""
    rows = []
    for one in found:
        if one["kernel"].startswith("embed") and one["capability"] == 90:
            rows.append([one["kernel"], f"{one['hidden_size']:,}", *(f"{one[name]:,}" for name in _FIGURES)])
    return markdown_table(["", "H", *_FIGURES.values()], rows)


def _key(one: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(one[name] for name in sorted(_NAMED))
