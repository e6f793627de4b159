"""The `phases` of a JSON: what changes from one run to the run that goes on from it, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bert_pld.config.errors import ConfigError, nearest

_TYPED = ("optimizer", "scheduler")
"""Blocks whose `params` belong to their `type`."""


def choose_phase(values: dict[str, Any], name: str | None, where: str) -> dict[str, Any]:
    """Return a JSON's values in the phase `name`: without `phases`, changed by this phase and those before it.

    A ConfigError is raised if there are phases but no name, or a name that none has, or if a phase ends too early.
    """
    phases = values.pop("phases", None)
    if phases is None:
        if name is not None:
            raise ConfigError(f"{where}: phases: missing; --phase {name} needs them")
        return values
    if not isinstance(phases, Mapping) or not phases or not all(isinstance(one, Mapping) for one in phases.values()):
        raise ConfigError(f"{where}: phases: must be an object with an object of changed keys for each name")
    names = ", ".join(phases)
    if name is None:
        raise ConfigError(f"{where}: phases: {names}; choose one with --phase")
    if name not in phases:
        raise ConfigError(f"{where}: --phase {name}: unknown{nearest(name, phases)}; valid: {names}")
    last: float = 0
    for own, changes in phases.items():
        if "phases" in changes:
            raise ConfigError(f"{where}: phases.{own}.phases: a phase must not have phases")
        values = _merged(values, changes)
        steps = (values.get("training") or {}).get("max_steps") if isinstance(values.get("training"), Mapping) else None
        if not isinstance(steps, (int, float)) or steps <= last:
            raise ConfigError(
                f"{where}: phases.{own}.training.max_steps: {steps or 'missing'}; must be given, and greater than"
                f" {last:g}, because steps count from the beginning of the first phase"
            )
        last = steps
        if own == name:
            break
    return values


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the values with the changed keys, at any depth."""
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(change, Mapping) and not _other_type(key, old, change):
            change = _merged(old, change)
        merged[key] = change
    return merged


def _other_type(key: str, old: Mapping[str, Any], change: Mapping[str, Any]) -> bool:
    return key in _TYPED and "type" in change and change["type"] != old.get("type")
