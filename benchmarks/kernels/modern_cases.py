"""The fused operations of ModernBERT's blocks that `benchmarks kernels` measures: I = 3·H / 2, heads of width 64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.operation import Formula, InputSet, Operation, Size
from bert_pld.kernels import reference, reference_attention

if TYPE_CHECKING:
    from bert_pld.kernels.tiles import Tile

_FP32 = 4
_INT32 = 4
_THETA = 10_000.0


class Geglu(Operation):
    """gelu(a) ∘ b of packed projections, [T, 2·I] → [T, I]."""

    name = "geglu"

    def __init__(self, size: Size, device: torch.device) -> None:
        super().__init__(size, device)
        self.width = 3 * size.hidden // 2

    def moved_bytes(self, direction: str) -> int:
        """The fewest bytes; backward reads projections and upstream gradient and writes a gradient of the former."""
        return (3 if direction == "forward" else 5) * self.size.tokens * self.width * self.size.item_bytes

    def random_inputs(self, seed: int) -> InputSet:
        """Draw projections [T, 2·I]."""
        generator, rows = self.generator(seed), self.size.tokens
        values = self.normal(generator, rows, 2 * self.width)
        return InputSet((values,), (self.normal(generator, rows, self.width).detach(),))

    def formula(self) -> Formula:
        """Returns [T, I]."""

        def geglu(values: Tensor) -> tuple[Tensor, ...]:
            inner, gate = values.chunk(2, dim=-1)
            return (F.gelu(inner) * gate,)

        return geglu

    def specification(self) -> Formula:
        """The reference backend's function."""
        return lambda values: (reference.geglu(values, "gelu"),)

    def forward(self, inputs: InputSet, tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`geglu_forward`."""
        from bert_pld.kernels.geglu import geglu_forward

        return (geglu_forward(inputs.arguments[0], "gelu", tile),)

    def backward(self, inputs: InputSet, saved: tuple[Tensor, ...], tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`geglu_backward`."""
        from bert_pld.kernels.geglu import geglu_backward

        (grad_out,) = inputs.upstream
        assert grad_out is not None
        return (geglu_backward(grad_out, inputs.arguments[0], "gelu", tile),)

    def default_tile(self, direction: str) -> Tile:
        """A tile of elements."""
        from bert_pld.kernels.tiles import element_tile

        return element_tile(self.width)


class RotaryHeads(Operation):
    """Packed projections [T, 3·H] become rotated queries and keys, and values."""

    name = "rotary"

    def __init__(self, size: Size, device: torch.device) -> None:
        super().__init__(size, device)
        self.heads = max(size.hidden // 64, 1)
        self.positions = torch.arange(size.tokens, dtype=torch.int32, device=device) % size.seq_length
        every = torch.arange(size.seq_length, device=device)
        self.cosines, self.sines = reference_attention.rotary_angles(every, size.hidden // self.heads, _THETA)

    def moved_bytes(self, direction: str) -> int:
        """The fewest bytes: all projections once in each direction, the positions, and the table of angles."""
        table = self.cosines.numel() + self.sines.numel()
        return (
            6 * self.size.tokens * self.size.hidden * self.size.item_bytes + _INT32 * self.size.tokens + _FP32 * table
        )

    def random_inputs(self, seed: int) -> InputSet:
        """Draw projections [T, 3·H]."""
        generator, rows, width = self.generator(seed), self.size.tokens, self.size.hidden
        qkv, shape = self.normal(generator, rows, 3 * width), (rows, self.heads, width // self.heads)
        return InputSet((qkv,), tuple(self.normal(generator, *shape).detach() for _ in range(3)))

    def formula(self) -> Formula:
        """Returns queries, keys and values, each [T, N, D]."""
        return self.specification()

    def specification(self) -> Formula:
        """The reference backend's function."""
        return lambda qkv: reference_attention.rotary_heads(qkv, self.heads, self.positions, self.cosines, self.sines)

    def forward(self, inputs: InputSet, tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`rotary_forward`."""
        from bert_pld.kernels.rotary import Rotation, rotary_forward

        rotation = Rotation(self.heads, self.positions, self.cosines, self.sines)
        return rotary_forward(inputs.arguments[0], rotation, tile)

    def backward(self, inputs: InputSet, saved: tuple[Tensor, ...], tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`rotary_backward`."""
        from bert_pld.kernels.rotary import Rotation, rotary_backward

        grads = [grad for grad in inputs.upstream if grad is not None]
        return (rotary_backward(grads, Rotation(self.heads, self.positions, self.cosines, self.sines), tile),)

    def default_tile(self, direction: str) -> Tile:
        """Rows of one head."""
        from bert_pld.kernels.rotary import head_tile

        return head_tile(self.cosines.shape[1])
