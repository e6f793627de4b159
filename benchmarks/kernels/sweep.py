"""Other tile sizes for a kernel: each is timed, and the best is compared with the default."""

from __future__ import annotations

import dataclasses
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.kernels.check import passes, relative_error
from benchmarks.kernels.device_timing import TimingOptions, prepare, take_turns
from benchmarks.kernels.implementations import overwritable, triton_implementation
from benchmarks.kernels.operation import Case
from benchmarks.results import one_line

if TYPE_CHECKING:
    from bert_pld.kernels.tiles import Tile

_ELEMENTS_A_THREAD = (4, 64)
"""Fewer make loads short, more spill registers."""
_MOST_WARPS = 16
_WARPS_A_MULTIPROCESSOR = 64
_TRIAL_ROUNDS = 5


def candidate_tiles(default: Tile, direction: str) -> list[Tile]:
    """The default and its neighbours that fit; rows, width and warps are powers of two.

    `backward` reduces over rows, so the number of programs varies too, and so do, where the default loads ahead, the
    number of tiles that are loaded ahead and the limit of registers. In `both` a program has one row, so its piece of
    it (`width`) varies instead of the rows.
    """
    shapes = (
        [(1, default.width * factor // 2) for factor in (1, 2, 4)]
        if direction == "both"
        else [(rows, default.width) for rows in _powers(default.rows)]
    )
    sharing = [max(default.programs_per_multiprocessor * factor // 2, 1) for factor in (1, 2, 4, 8)]
    candidates = [
        dataclasses.replace(default, rows=rows, width=width, num_warps=warps, programs_per_multiprocessor=programs)
        for rows, width in shapes
        for warps in _powers(default.num_warps)
        for programs in (dict.fromkeys(sharing) if direction == "backward" else [default.programs_per_multiprocessor])
    ]
    if default.num_stages > 1:
        candidates += [dataclasses.replace(default, num_stages=stages) for stages in (1, 2, 3, 4)]
        candidates += [dataclasses.replace(default, max_registers=most) for most in (None, 128, 168)]
    return [default, *(tile for tile in dict.fromkeys(candidates) if tile != default and fits(tile))]


def _powers(default: int) -> list[int]:
    return [default * factor // 2 for factor in (1, 2, 4, 8) if default * factor >= 2]


def fits(tile: Tile) -> bool:
    """Whether a tile's size per thread and warps per multiprocessor are within the limits."""
    least, most = _ELEMENTS_A_THREAD
    a_thread = tile.rows * tile.pieces * tile.width / (32 * tile.num_warps)
    return (
        least <= a_thread <= most
        and tile.num_warps <= _MOST_WARPS
        and tile.num_warps * tile.programs_per_multiprocessor <= _WARPS_A_MULTIPROCESSOR
    )


def sweep(case: Case, timing: TimingOptions) -> dict[str, Any]:
    """Time every candidate, then the best and the default again, in turns.

    `tried` has all candidates, with the error of those that did not compile or gave other results.
    """
    tried: list[dict[str, Any]] = []
    tiles = candidate_tiles(case.operation.default_tile(case.direction), case.direction)
    trial = dataclasses.replace(timing, rounds=min(timing.rounds, _TRIAL_ROUNDS))
    for tile in tiles:
        try:
            error = _difference(case, tile)
            if passes(error):
                tried.append({"tile": dataclasses.asdict(tile), "us": _time([tile], case, trial)[0] * 1e6})
            else:
                tried.append({"tile": dataclasses.asdict(tile), "error": f"differs from the default by {error:.1e}"})
        except Exception as error:  # A tile that needs more than the device has is a result too.
            tried.append({"tile": dataclasses.asdict(tile), "error": one_line(error)})
    trial_us: list[float] = [one.get("us", float("inf")) for one in tried]
    finalists = [tiles[0], tiles[trial_us.index(min(trial_us))]]
    seconds = _time(finalists, case, timing)
    found = [{"tile": dataclasses.asdict(t), "us": s * 1e6} for t, s in zip(finalists, seconds, strict=True)]
    return {"default": found[0], "best": found[seconds.index(min(seconds))], "tried": tried}


def _time(tiles: list[Tile], case: Case, timing: TimingOptions) -> list[float]:
    """Median seconds of a call with each tile."""
    sets, device = len(case.input_sets), case.operation.device
    timed = [prepare(triton_implementation(case, tile), sets, device, timing.graphs) for tile in tiles]
    take_turns(timed, sets, timing.rounds, device)
    return [statistics.median(one.seconds) for one in timed]


def _difference(case: Case, tile: Tile) -> float:
    """The largest relative difference between a tile's results and the default's."""
    operation, inputs = case.operation, case.input_sets[0]

    def results(tile: Tile | None) -> tuple[torch.Tensor, ...]:
        own = overwritable(inputs) if operation.overwrites else inputs
        if case.direction != "backward":
            return operation.forward(own, tile)
        return operation.backward(own, operation.forward(own), tile)

    pairs = zip(results(tile), results(None), strict=True)
    return float(np.max([relative_error(mine, other) for mine, other in pairs]))
