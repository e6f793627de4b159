"""The backward pass of `split_qkv` as `benchmarks kernels` measures it; forward makes views and launches nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from benchmarks.kernels.operation import Formula, InputSet, Operation
from bert_pld.kernels import reference_attention

if TYPE_CHECKING:
    from bert_pld.kernels.tiles import Tile

_FP32 = 4


class SplitQkv(Operation):
    """Gradients of queries, keys and values side by side, and their sum over rows."""

    name = "split_qkv"
    directions = ("backward",)

    def moved_bytes(self, direction: str) -> int:
        """The fewest bytes: three gradients are read and written once."""
        width = 3 * self.size.hidden
        return 2 * self.size.tokens * width * self.size.item_bytes + width * _FP32

    def random_inputs(self, seed: int) -> InputSet:
        """Draw projections [T, 3·H] and the bias [3·H] that they contain."""
        generator, rows, width = self.generator(seed), self.size.tokens, self.size.hidden
        arguments = self.normal(generator, rows, 3 * width), self.normal(generator, 3 * width)
        return InputSet(arguments, tuple(self.normal(generator, rows, width).detach() for _ in range(3)))

    def formula(self) -> Formula:
        """The reference backend's function, whose backward joins the gradients and then sums them."""
        return reference_attention.split_qkv

    def specification(self) -> Formula:
        """The reference backend's function."""
        return reference_attention.split_qkv

    def forward(self, inputs: InputSet, tile: Tile | None = None) -> tuple[Tensor, ...]:
        """Three views."""
        return inputs.arguments[0].chunk(3, dim=-1)

    def backward(self, inputs: InputSet, saved: tuple[Tensor, ...], tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`split_qkv_backward`."""
        from bert_pld.kernels.split_qkv import split_qkv_backward

        query, key, value = inputs.upstream
        assert query is not None
        assert key is not None
        assert value is not None
        return split_qkv_backward(query, key, value, tile)

    def default_tile(self, direction: str) -> Tile:
        """A row per warp."""
        from bert_pld.kernels.tiles import column_tile

        return column_tile(self.size.hidden)
