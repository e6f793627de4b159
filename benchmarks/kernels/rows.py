"""One operation at one size: checked, then timed beside its peers; a row for each direction."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.kernels.check import kernel_errors, passes
from benchmarks.kernels.device_timing import (
    TimingOptions,
    copy_implementation,
    host_seconds,
    number_of_sets,
    prepare,
    take_turns,
)
from benchmarks.kernels.implementations import (
    peer_formula,
    repeatable_compiled_backward,
    torch_implementation,
    triton_implementation,
    triton_obstacle,
)
from benchmarks.kernels.operation import Case, Formula, Operation, Size
from benchmarks.kernels.sweep import sweep
from benchmarks.results import one_line


def measure_rows(
    operation: Operation, peers: Sequence[str], timing: TimingOptions, with_sweep: bool
) -> list[dict[str, Any]]:
    """Check and time one operation; return a row for each direction.

    A row has the size, `bytes`, `sets`, `times` by implementation, `absent` implementations with the reason, the
    kernel's `error`, `failed` (the reason, or None) and `sweep`.
    """
    sets = number_of_sets(operation.moved_bytes("forward"), operation.device)
    input_sets = [operation.random_inputs(seed) for seed in range(sets)]
    obstacle = triton_obstacle(operation.device)
    errors: dict[str, float] = {}
    failed = None
    if obstacle is None:
        try:
            errors = kernel_errors(operation, input_sets[0])
        except Exception as error:  # The table is printed with this row failed, and the command exits with 1.
            obstacle = failed = one_line(error)
    formulas, absent = _formulas(operation, peers)
    if obstacle is not None:
        absent["triton"] = obstacle
    rows = []
    with repeatable_compiled_backward() if "compiled" in formulas else contextlib.nullcontext():
        for direction in operation.directions:
            case = Case(operation, direction, input_sets)
            row = _row(case, formulas, dict(absent), timing)
            swept = with_sweep and operation.swept and "triton" in row["times"]
            row["sweep"] = sweep(case, timing) if swept else None
            row["error"] = errors.get(direction)
            row["failed"] = failed
            if direction in errors and not passes(errors[direction]):
                row["failed"] = f"differs from the specification by {errors[direction]:.1e}"
            rows.append(row)
    return rows


def _formulas(operation: Operation, peers: Sequence[str]) -> tuple[dict[str, Formula], dict[str, str]]:
    """The formulas of peers that can run, and the reasons of those that cannot."""
    formulas: dict[str, Formula] = {}
    absent: dict[str, str] = {}
    for peer in peers:
        found = peer_formula(peer, operation)
        if isinstance(found, str):
            absent[peer] = found
        elif found is not None:
            formulas[peer] = found
    return formulas, absent


def _row(case: Case, formulas: dict[str, Formula], absent: dict[str, str], timing: TimingOptions) -> dict[str, Any]:
    """Time one direction."""
    operation, sets = case.operation, len(case.input_sets)
    device, moved = operation.device, operation.moved_bytes(case.direction)
    timed = []
    if "triton" not in absent:
        timed.append(prepare(triton_implementation(case), sets, device, timing.graphs))
    for peer, formula in formulas.items():
        try:
            timed.append(prepare(torch_implementation(peer, formula, case), sets, device, timing.graphs))
        except Exception as error:  # A peer that cannot run here is left out with its reason.
            absent[peer] = one_line(error)
    timed.append(prepare(copy_implementation(moved, sets, device), sets, device, timing.graphs))
    take_turns(timed, sets, timing.rounds, device)
    times = {one.implementation.name: one.figures(moved) for one in timed}
    if device.type == "cuda":
        for one in timed:
            times[one.implementation.name]["host_us"] = host_seconds(one.implementation, sets, device) * 1e6
    return {
        "operation": operation.name,
        "direction": case.direction,
        **dataclasses.asdict(operation.size),
        "bytes": moved,
        "sets": sets,
        "times": times,
        "absent": absent,
    }


def failed_row(name: str, size: Size, error: BaseException) -> dict[str, Any]:
    """The row of an operation that could not be measured at all."""
    return {
        "operation": name,
        "direction": "–",
        **dataclasses.asdict(size),
        **dict.fromkeys(("bytes", "sets", "sweep", "error")),
        "times": {},
        "absent": {},
        "failed": one_line(error),
    }
