"""Shared parts of the Triton kernels: tile sizes, the number of programs of a reduction, the dropout mask of a tile."""

from __future__ import annotations

import dataclasses
import functools

import torch
import triton
import triton.language as tl

INTERPRETED_PROGRAMS = 3
INTERPRETED_TILES = 2
_WARP_WIDTH = 256
"""Columns that a warp reads at once in a 16-bit dtype: 32 threads with 16 bytes each."""


def ceil_div(count: int, size: int) -> int:
    """Return ⌈count / size⌉; Triton's own `cdiv` takes microseconds on the host, several times per launch."""
    return -(-count // size)


def power_of_two_from(size: int) -> int:
    """Return the lowest power of two that is at least `size`."""
    return 1 << max(size - 1, 0).bit_length()


@dataclasses.dataclass(frozen=True)
class Tile:
    """The part of a matrix that a program processes at a time, and the number of programs of a reducing kernel."""

    rows: int
    width: int
    num_warps: int
    programs_per_multiprocessor: int = 2
    """For kernels that reduce over rows: each program loops over many tiles and stores one partial sum."""

    def fitted(self, num_rows: int, device: torch.device) -> Tile:
        """Return the tile, made taller for many rows on the interpreter, which runs programs one after the other."""
        if device.type == "cuda" or num_rows <= INTERPRETED_TILES * self.rows:
            return self
        return dataclasses.replace(self, rows=power_of_two_from(ceil_div(num_rows, INTERPRETED_TILES)))

    def launch_arguments(self, width: int) -> dict[str, int]:
        """Return the arguments of a launch that depend on the tile and on the matrix's width."""
        return {"WIDTH": width, "BLOCK_ROWS": self.rows, "BLOCK_WIDTH": self.width, "num_warps": self.num_warps}

    def programs(self, num_rows: int, device: torch.device) -> int:
        """Return the number of programs of a reducing kernel: enough to fill the device, at most one per tile."""
        filling = self.programs_per_multiprocessor * multiprocessors(device)
        return min(ceil_div(num_rows, self.rows), filling)


@functools.cache
def row_tile(width: int) -> Tile:
    """Return a tile of one row per program, up to 1,024 columns per warp: one warp sums its row without a barrier."""
    padded = max(power_of_two_from(width), 16)
    return Tile(rows=1, width=padded, num_warps=min(max(padded // (4 * _WARP_WIDTH), 1), 16))


@functools.cache
def reducing_row_tile(width: int) -> Tile:
    """Return a tile of a few whole rows, with the warps side by side, so that each thread keeps its columns' sums."""
    padded = max(power_of_two_from(width), 16)
    num_warps = min(max(padded // _WARP_WIDTH, 1), 8)  # 16 would leave a thread too few registers
    rows = min(max(4 * _WARP_WIDTH * num_warps // padded, 1), 4)
    return Tile(rows, padded, num_warps, programs_per_multiprocessor=2 if num_warps >= 4 else 4)


@functools.cache
def element_tile(width: int) -> Tile:
    """Return a tile of rows × columns for element-wise kernels, with or without a sum over rows."""
    padded = min(max(power_of_two_from(width), 16), 4 * _WARP_WIDTH)
    return Tile(4, padded, num_warps=max(padded // _WARP_WIDTH, 1), programs_per_multiprocessor=6)


def multiprocessors(device: torch.device) -> int:
    """Return a GPU's number of multiprocessors; on the interpreter a few, so that loops run more than once."""
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return _multiprocessors(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


@triton.jit
def keep_tile(rows, seed, seed_high, site, dropped_levels, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Return `bert_pld.kernels.dropout.counter_keep_mask` of these rows: bool [BLOCK_ROWS, BLOCK_WIDTH]."""
    groups = tl.arange(0, BLOCK_WIDTH // 8).to(tl.uint32)
    zeros = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH // 8], tl.uint32)
    word_0, word_1, word_2, word_3 = tl.philox(
        seed, zeros + groups[None, :], zeros + rows.to(tl.uint32)[:, None], zeros + site, zeros + seed_high
    )
    # tl.join interleaves its arguments: joining (0, 2) and (1, 3) first gives the words in order.
    words = tl.join(tl.join(word_0, word_2), tl.join(word_1, word_3))
    halves = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(halves, [BLOCK_ROWS, BLOCK_WIDTH]) >= dropped_levels
