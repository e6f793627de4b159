"""Other tiles for a kernel, each timed, and the best beside the default."""

from __future__ import annotations

import dataclasses
import statistics
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.kernels.check import largest, passes, relative_error
from benchmarks.kernels.contenders import overwritable, triton_contender
from benchmarks.kernels.device_timing import one_line, prepare, take_turns
from benchmarks.kernels.operation import Draw, Operation

if TYPE_CHECKING:
    from bert_pld.kernels.tiles import Tile

_ELEMENTS_A_THREAD = (4, 64)
"""Fewer leave loads short, more spill."""
_MOST_WARPS = 16
_WARPS_A_MULTIPROCESSOR = 64
_TRIAL_ROUNDS = 5


def candidate_tiles(default: Tile, direction: str) -> list[Tile]:
    """The default and its neighbours that fit, all powers of two but `programs_per_multiprocessor`.

    Args:
        default: the launcher's own.
        direction: `backward` reduces over rows, so the programs that share them vary; `both` takes one row a program,
            so the piece of it (`width`) varies instead of the rows.
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
    return [default, *(tile for tile in candidates if tile != default and _fits(tile))]


def _powers(default: int) -> list[int]:
    return [default * factor // 2 for factor in (1, 2, 4, 8) if default * factor >= 2]


def _fits(tile: Tile) -> bool:
    least, most = _ELEMENTS_A_THREAD
    a_thread = tile.rows * tile.width / (32 * tile.num_warps)
    return (
        least <= a_thread <= most
        and tile.num_warps <= _MOST_WARPS
        and tile.num_warps * tile.programs_per_multiprocessor <= _WARPS_A_MULTIPROCESSOR
    )


def sweep(operation: Operation, direction: str, draws: list[Draw], rounds: int, graphs: bool) -> dict[str, Any]:
    """Time every candidate, then the best and the default again, in turns.

    Returns:
        JSON-ready: `default` and `best`, each with its tile and µs, and `tried`: all, with the error of those that
        did not compile or gave other results.
    """
    tried: list[dict[str, Any]] = []
    tiles = candidate_tiles(operation.default_tile(direction), direction)
    for tile in tiles:
        try:
            error = _difference(operation, direction, draws[0], tile)
            if not passes(error):
                tried.append({"tile": dataclasses.asdict(tile), "error": f"differs from the default by {error:.1e}"})
                continue
            seconds = _time([tile], operation, direction, draws, min(rounds, _TRIAL_ROUNDS), graphs)
            tried.append({"tile": dataclasses.asdict(tile), "us": seconds[0] * 1e6})
        except Exception as error:  # A tile that needs more than the device has is an answer too.
            tried.append({"tile": dataclasses.asdict(tile), "error": one_line(error)})
    trial_us: list[float] = [one.get("us", float("inf")) for one in tried]
    best = trial_us.index(min(trial_us))
    finalists = [tiles[0], tiles[best]]
    seconds = _time(finalists, operation, direction, draws, rounds, graphs)
    found = [{"tile": dataclasses.asdict(t), "us": s * 1e6} for t, s in zip(finalists, seconds, strict=True)]
    return {"default": found[0], "best": found[seconds.index(min(seconds))], "tried": tried}


def _time(
    tiles: list[Tile], operation: Operation, direction: str, draws: list[Draw], rounds: int, graphs: bool
) -> list[float]:
    """Median seconds of a call with each tile."""
    prepared = [
        prepare(triton_contender(operation, direction, draws, tile), len(draws), operation.device, graphs)
        for tile in tiles
    ]
    take_turns(prepared, len(draws), rounds, operation.device)
    return [statistics.median(one.seconds) for one in prepared]


def _difference(operation: Operation, direction: str, draw: Draw, tile: Tile) -> float:
    """How far a tile's results are from the default's."""

    def results(tile: Tile | None) -> tuple[torch.Tensor, ...]:
        own = overwritable(draw) if operation.overwrites else draw
        if direction != "backward":
            return operation.forward(own, tile)
        return operation.backward(own, operation.forward(own), tile)

    pairs = zip(results(tile), results(None), strict=True)
    return largest([relative_error(mine, other) for mine, other in pairs])
