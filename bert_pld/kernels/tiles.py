"""Shared parts of the Triton kernels: tile sizes, the number of programs of a reduction, the dropout mask of a tile."""

from __future__ import annotations

import dataclasses
import functools

import torch
import triton
import triton.language as tl

ASSERTIONS = {"sanitize_overflow": False}
"""Option of a kernel that has assertions: only what it asserts is checked, not each addition for overflow."""
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
    """Columns of a piece, a power of two."""
    num_warps: int
    programs_per_multiprocessor: int = 2
    """For kernels that reduce over rows: each program loops over many tiles and stores one partial sum."""
    pieces: int = 1
    """Pieces of a row, for kernels that need whole rows: three of 256 hold 768 columns without idle lanes."""
    num_stages: int = 1
    """For kernels that loop: tiles that are loaded ahead, through shared memory, plus one."""
    max_registers: int | None = None
    """Registers of a thread that the assembler may use; None: as many as it wants."""

    def fitted(self, num_rows: int, device: torch.device) -> Tile:
        """Return the tile, made taller for many rows on the interpreter, which runs programs one after the other."""
        if device.type == "cuda" or num_rows <= INTERPRETED_TILES * self.rows:
            return self
        return dataclasses.replace(self, rows=power_of_two_from(ceil_div(num_rows, INTERPRETED_TILES)))

    def launch_arguments(self, width: int) -> dict[str, int]:
        """Return the arguments of a launch that depend on the tile and on the matrix's width."""
        arguments = {"WIDTH": width, "BLOCK_ROWS": self.rows, "BLOCK_WIDTH": self.width, "num_warps": self.num_warps}
        return arguments if self.max_registers is None else {**arguments, "maxnreg": self.max_registers}

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
    """Return a tile of as many rows as its warps hold at eight columns of a piece per thread.

    So each thread adds up its columns of one row, and the sums over rows meet once, after the loop.
    """
    padded = max(power_of_two_from(width), 16)
    pieces = 3 if _fits_three_quarters(width, padded) else 2 if padded > _WARP_WIDTH else 1
    piece = padded // (4 if pieces == 3 else pieces)
    num_warps = min(max(piece // _WARP_WIDTH, 4), 16)
    rows = max(num_warps * _WARP_WIDTH // piece, 1)
    if pieces == 3:
        return Tile(rows, piece, num_warps, max(8 // num_warps, 1), pieces, num_stages=3)
    # Three programs of four warps fit a multiprocessor with 168 registers a thread, one of sixteen with 128.
    most = min(168, 65536 // (32 * num_warps))
    return Tile(rows, piece, num_warps, max(12 // num_warps, 1), pieces, num_stages=2, max_registers=most)


def _fits_three_quarters(width: int, padded: int) -> bool:
    """Whether a row fits three pieces of a quarter of the next power of two: 768 columns, but not 1,000."""
    return padded >= 64 and 4 * width <= 3 * padded


@functools.cache
def element_tile(width: int) -> Tile:
    """Return a tile of rows × columns for element-wise kernels, with or without a sum over rows."""
    padded = min(max(power_of_two_from(width), 16), 4 * _WARP_WIDTH)
    return Tile(4, padded, num_warps=max(padded // _WARP_WIDTH, 1), programs_per_multiprocessor=6)


@functools.cache
def column_tile(width: int) -> Tile:
    """Return a tile of a row per warp for kernels that sum over rows: 256 columns wide, as 768 is three of them."""
    padded = min(max(power_of_two_from(width), 64), _WARP_WIDTH)
    return Tile(4 * _WARP_WIDTH // padded, padded, num_warps=4, programs_per_multiprocessor=6)


def multiprocessors(device: torch.device) -> int:
    """Return a GPU's number of multiprocessors; on the interpreter a few, so that loops run more than once."""
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return _multiprocessors(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


@triton.jit
def keep_tile(
    rows, first_column, seed, seed_high, site, dropped_levels, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr
):
    """Return `bert_pld.kernels.dropout.counter_keep_mask` of these rows and columns: bool [BLOCK_ROWS, BLOCK_WIDTH].

    `first_column` is a multiple of 8.
    """
    groups = (first_column // 8 + tl.arange(0, BLOCK_WIDTH // 8)).to(tl.uint32)
    zeros = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH // 8], tl.uint32)
    word_0, word_1, word_2, word_3 = tl.philox(
        seed, zeros + groups[None, :], zeros + rows.to(tl.uint32)[:, None], zeros + site, zeros + seed_high
    )
    # tl.join interleaves its arguments: joining (0, 2) and (1, 3) first gives the words in order. The low half of a
    # word decides for the first of its two columns; the high half is compared in place.
    words = tl.join(tl.join(word_0, word_2), tl.join(word_1, word_3))
    threshold = dropped_levels.to(tl.uint32)
    keep = tl.join((words & 0xFFFF) >= threshold, words >= (threshold << 16))
    return tl.reshape(keep, [BLOCK_ROWS, BLOCK_WIDTH])
