"""Packed projections become queries, keys and values, of which the first two are rotated: one pass in each direction.

    (x_d, x_{d+D/2}) ← (x_d·cos − x_{d+D/2}·sin,  x_{d+D/2}·cos + x_d·sin)        for each pair of a head of width D

The angle is that of the token's position in its sequence (Su et al., arXiv:2104.09864); rotation is in fp32. The packed
projections are read once and may be freed; backward rotates the other way and joins the three gradients, which autograd
would copy together anyway. Each direction reads and writes 3·H values a row. The specification is
`bert_pld.kernels.reference_attention.rotary_heads`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_pld.kernels.tiles import Tile, ceil_div, power_of_two_from


@triton.jit(do_not_specialize=["num_rows"])
def rotary_kernel(
    packed_ptr,  # [T, 3 * HEADS * 2 * PAIRS]
    query_ptr,  # [T, HEADS * 2 * PAIRS]
    key_ptr,  # the same
    value_ptr,  # the same
    positions_ptr,  # int32 [T]
    cosines_ptr,  # fp32 [S, PAIRS]
    sines_ptr,  # fp32 [S, PAIRS]
    num_rows,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Each program handles one head of a tile of rows: from packed to separate, or back."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    pairs = tl.arange(0, BLOCK_WIDTH)
    in_rows = rows < num_rows
    mask = in_rows[:, None] & (pairs < PAIRS)[None, :]
    position = tl.load(positions_ptr + rows, mask=in_rows, other=0)
    angle = position[:, None] * PAIRS + pairs[None, :]
    cosine = tl.load(cosines_ptr + angle, mask=mask, other=0.0)
    sine = tl.load(sines_ptr + angle, mask=mask, other=0.0)
    width = HEADS * 2 * PAIRS
    columns = tl.program_id(1) * (2 * PAIRS) + pairs[None, :]
    packed = packed_ptr + rows.to(tl.int64)[:, None] * (3 * width) + columns
    separate = rows.to(tl.int64)[:, None] * width + columns
    if BACKWARD:
        sine = -sine
        _rotate(query_ptr + separate, packed, cosine, sine, mask, PAIRS)
        _rotate(key_ptr + separate, packed + width, cosine, sine, mask, PAIRS)
        _copy(value_ptr + separate, packed + 2 * width, mask, PAIRS)
    else:
        _rotate(packed, query_ptr + separate, cosine, sine, mask, PAIRS)
        _rotate(packed + width, key_ptr + separate, cosine, sine, mask, PAIRS)
        _copy(packed + 2 * width, value_ptr + separate, mask, PAIRS)


@triton.jit
def _rotate(source, target, cosine, sine, mask, PAIRS: tl.constexpr):
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + PAIRS, mask=mask, other=0.0).to(tl.float32)
    tl.store(target, (first * cosine - second * sine).to(target.dtype.element_ty), mask=mask)
    tl.store(target + PAIRS, (second * cosine + first * sine).to(target.dtype.element_ty), mask=mask)


@triton.jit
def _copy(source, target, mask, PAIRS: tl.constexpr):
    tl.store(target, tl.load(source, mask=mask, other=0.0), mask=mask)
    tl.store(target + PAIRS, tl.load(source + PAIRS, mask=mask, other=0.0), mask=mask)


def head_tile(pairs: int) -> Tile:
    """Return a tile of rows of one head: 2,048 pairs on four warps."""
    padded = max(power_of_two_from(pairs), 16)
    return Tile(max(2048 // padded, 1), padded, num_warps=4)


def launch_arguments(num_heads: int, pairs: int, tile: Tile | None = None) -> dict[str, int]:
    """Return the arguments of a launch that depend on sizes; `tile` defaults to `head_tile(pairs)`."""
    tile = tile or head_tile(pairs)
    sizes = {"BLOCK_ROWS": tile.rows, "BLOCK_WIDTH": tile.width, "num_warps": tile.num_warps}
    return {"HEADS": num_heads, "PAIRS": pairs, **sizes}


@dataclasses.dataclass(frozen=True)
class Rotation:
    """What the rows turn by."""

    num_heads: int
    positions: Tensor
    """int32 [T]: each row's position."""
    cosines: Tensor
    """fp32 [S, D / 2]: of every position's angles."""
    sines: Tensor


def rotary_forward(qkv: Tensor, rotation: Rotation, tile: Tile | None = None) -> tuple[Tensor, ...]:
    """Launch the kernel: [T, 3·H] → queries, keys and values, each [T, N, D]."""
    shape = len(qkv), rotation.num_heads, 2 * rotation.cosines.shape[1]
    separate = tuple(torch.empty(shape, dtype=qkv.dtype, device=qkv.device) for _ in range(3))
    _launch(qkv, separate, rotation, False, tile)
    return separate


def rotary_backward(grads: Sequence[Tensor], rotation: Rotation, tile: Tile | None = None) -> Tensor:
    """Launch the kernel in the other direction: three gradients [T, N, D] → [T, 3·H]."""
    separate = tuple(grad.contiguous() for grad in grads)
    rows, heads, width = separate[0].shape
    packed = torch.empty(rows, 3 * heads * width, dtype=separate[0].dtype, device=separate[0].device)
    _launch(packed, separate, rotation, True, tile)
    return packed


def _launch(packed: Tensor, separate: Sequence[Tensor], rotation: Rotation, backward: bool, tile: Tile | None) -> None:
    num_rows, heads, pairs = len(packed), rotation.num_heads, rotation.cosines.shape[1]
    assert packed.shape[1] == 6 * heads * pairs
    if num_rows:
        arguments = launch_arguments(heads, pairs, tile)
        grid = (ceil_div(num_rows, arguments["BLOCK_ROWS"]), heads)
        angles = rotation.positions, rotation.cosines, rotation.sines
        rotary_kernel[grid](packed, *separate, *angles, num_rows, BACKWARD=backward, **arguments)


class _RotaryHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, num_heads, positions, cosines, sines):
        ctx.save_for_backward(positions, cosines, sines)
        ctx.num_heads = num_heads
        return rotary_forward(qkv, Rotation(num_heads, positions, cosines, sines))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        return rotary_backward(grads, Rotation(ctx.num_heads, *ctx.saved_tensors)), None, None, None, None


def rotary_heads(
    qkv: Tensor, num_heads: int, positions: Tensor, cosines: Tensor, sines: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `bert_pld.kernels.reference_attention.rotary_heads` as one kernel in each direction; differentiable once."""
    return _RotaryHeads.apply(qkv.contiguous(), num_heads, positions, cosines, sines)
