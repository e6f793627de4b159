"""One operation at one size: checked, then timed beside its peers, a row a direction."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.kernels.check import kernel_errors, passes
from benchmarks.kernels.contenders import (
    peer_formula,
    repeatable_compiled_backward,
    torch_contender,
    triton_contender,
    triton_obstacle,
)
from benchmarks.kernels.device_timing import (
    Contender,
    copy_contender,
    host_seconds,
    input_sets,
    one_line,
    prepare,
    take_turns,
)
from benchmarks.kernels.operation import Draw, Formula, Operation
from benchmarks.kernels.sweep import sweep


@dataclasses.dataclass(frozen=True)
class Conditions:
    """How rows are measured."""

    peers: Sequence[str]
    rounds: int
    graphs: bool
    sweep: bool


def measure_rows(operation: Operation, conditions: Conditions) -> list[dict[str, Any]]:
    """Check and time one operation.

    Returns:
        JSON-ready, for each direction: the size, `bytes`, `sets`, `times` by contender, `absent` with the reason, the
        kernel's `error`, `failed` (why, or None) and `sweep`.
    """
    sets = input_sets(operation.moved_bytes("forward"), operation.device)
    draws = [operation.draw(seed) for seed in range(sets)]
    obstacle = triton_obstacle(operation.device)
    errors: dict[str, float] = {}
    failed = None
    if obstacle is None:
        try:
            errors = kernel_errors(operation, draws[0])
        except Exception as error:  # The table is printed with this row failed, and the command exits with 1.
            obstacle = failed = one_line(error)
    formulas, absent = _formulas(operation, conditions.peers)
    if obstacle is not None:
        absent["triton"] = obstacle
    rows = []
    with repeatable_compiled_backward() if "compiled" in formulas else contextlib.nullcontext():
        for direction in operation.directions:
            row = _row(operation, direction, draws, formulas, dict(absent), conditions)
            row["error"] = errors.get(direction)
            row["failed"] = failed
            if direction in errors and not passes(errors[direction]):
                row["failed"] = f"differs from the specification by {errors[direction]:.1e}"
            rows.append(row)
    return rows


def _formulas(operation: Operation, peers: Sequence[str]) -> tuple[dict[str, Formula], dict[str, str]]:
    """What each peer runs, and why some don't."""
    formulas: dict[str, Formula] = {}
    absent: dict[str, str] = {}
    for peer in peers:
        found = peer_formula(peer, operation)
        if isinstance(found, str):
            absent[peer] = found
        elif found is not None:
            formulas[peer] = found
    return formulas, absent


def _row(
    operation: Operation,
    direction: str,
    draws: list[Draw],
    formulas: dict[str, Formula],
    absent: dict[str, str],
    conditions: Conditions,
) -> dict[str, Any]:
    """One direction."""
    device, sets, moved = operation.device, len(draws), operation.moved_bytes(direction)
    contenders: list[Contender] = []
    if "triton" not in absent:
        contenders.append(triton_contender(operation, direction, draws))
    prepared = [prepare(one, sets, device, conditions.graphs) for one in contenders]
    for peer, formula in formulas.items():
        try:
            prepared.append(prepare(torch_contender(peer, formula, direction, draws), sets, device, conditions.graphs))
        except Exception as error:  # A peer that cannot run here is left out with its reason.
            absent[peer] = one_line(error)
    prepared.append(prepare(copy_contender(moved, sets, device), sets, device, conditions.graphs))
    take_turns(prepared, sets, conditions.rounds, device)
    times = {one.contender.name: one.figures(moved) for one in prepared}
    if device.type == "cuda":
        for one in prepared:
            times[one.contender.name]["host_us"] = host_seconds(one.contender, sets, device) * 1e6
    swept = None
    if conditions.sweep and "triton" in times:
        prepared.clear()
        swept = sweep(operation, direction, draws, conditions.rounds, conditions.graphs)
    size = dataclasses.asdict(operation.size)
    return {
        "operation": operation.name,
        "direction": direction,
        **size,
        "bytes": moved,
        "sets": sets,
        "times": times,
        "absent": absent,
        "sweep": swept,
    }


def failed_row(name: str, size: Any, error: BaseException) -> dict[str, Any]:
    """Of an operation that could not be measured at all."""
    return {
        "operation": name,
        "direction": "–",
        **dataclasses.asdict(size),
        "bytes": None,
        "sets": None,
        "times": {},
        "absent": {},
        "sweep": None,
        "error": None,
        "failed": one_line(error),
    }
