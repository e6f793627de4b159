"""The fused operations that `bench kernels` measures.

Shapes: T tokens, H hidden, K rows of the branch, N rows that are normalised, I = 4·H, M masked positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.operation import Draw, Formula, Operation, Size
from bert_pld.kernels import reference
from bert_pld.kernels.dropout import CounterDropout
from bert_pld.kernels.layout import TokenLayout, kept_layouts
from bert_pld.kernels.reference import Join, RowMap

if TYPE_CHECKING:
    from bert_pld.kernels.tiles import Tile

DROPOUT = 0.1
EPS = 1e-5
GATE_SCALE = 1.25
KEPT_SHARE = 0.75
MASK_PROBABILITY = 0.15
_FP32 = 4
_INT32 = 4
_INT64 = 8


class AddNorm(Operation):
    """LayerNorm, with or without a branch that joins the stream first, of all rows or between subsets of sequences.

    Without a branch only the normalised rows have an upstream gradient: a plain LayerNorm, as peers have it.
    """

    def __init__(self, name: str, size: Size, device: torch.device, branch: bool, subsets: bool) -> None:
        super().__init__(size, device)
        self.name = name
        joined: RowMap | None
        self.rows: RowMap | None
        joined, self.rows = _two_subsets(size, device) if subsets else (None, None)
        dropout = CounterDropout(DROPOUT, seed=1 << 40, site=3)
        self.join = Join(GATE_SCALE, dropout, joined) if branch else None
        self.in_norm = size.tokens if self.rows is None else self.rows.count
        self.in_branch = 0 if not branch else size.tokens if joined is None else joined.count
        self._joined_rows, self._normed_rows = (_stream_rows(rows) for rows in (joined, self.rows))

    def moved_bytes(self, direction: str) -> int:
        """Without a branch only the normalised rows must be read."""
        rows, width, item = self.size.tokens, self.size.hidden, self.size.item_bytes
        branch = self.join is not None
        maps = _INT32 * rows * ((self.rows is not None) + (branch and self._joined_rows is not None))
        statistics = 2 * _FP32 * self.in_norm
        if direction == "forward":
            read = (rows if branch else self.in_norm) + self.in_branch + (3 if branch else 2)
            written = (rows if branch else 0) + self.in_norm
            return (read + written) * width * item + maps + statistics
        read = 2 * self.in_norm + (rows if branch else 0) + 1
        written = rows + self.in_branch
        return (read + written) * width * item + (3 if branch else 2) * width * _FP32 + maps + statistics

    def draw(self, seed: int) -> Draw:
        """stream [T, H], weight [H], norm_bias [H] and, with a branch, values [K, H], bias [H]."""
        generator, width = self.generator(seed), self.size.hidden
        inputs = [self.normal(generator, *shape) for shape in ((self.size.tokens, width), (width,), (width,))]
        upstream = [self.normal(generator, self.in_norm, width).detach()]
        if self.join is not None:
            inputs += [self.normal(generator, self.in_branch, width), self.normal(generator, width)]
            upstream.append(self.normal(generator, self.size.tokens, width).detach())
        return Draw(tuple(inputs), tuple(upstream))

    def formula(self) -> Formula:
        """normed [N, H] and, with a branch, the new stream [T, H]."""
        joined, chosen, width = self._joined_rows, self._normed_rows, self.size.hidden

        def norm(stream: Tensor, weight: Tensor, norm_bias: Tensor) -> tuple[Tensor, ...]:
            rows = stream if chosen is None else stream.index_select(0, chosen)
            return (F.layer_norm(rows, (width,), weight, norm_bias, EPS),)

        def add_norm(
            stream: Tensor, weight: Tensor, norm_bias: Tensor, values: Tensor, bias: Tensor
        ) -> tuple[Tensor, ...]:
            branch = F.dropout(values + bias, DROPOUT)
            if joined is None:
                stream = torch.add(stream, branch, alpha=GATE_SCALE)
            else:
                stream = stream.index_add(0, joined, branch, alpha=GATE_SCALE)
            return *norm(stream, weight, norm_bias), stream

        return norm if self.join is None else add_norm

    def specification(self) -> Formula:
        """The same under the counter's mask."""
        outputs = 1 if self.join is None else 2

        def specified(stream: Tensor, weight: Tensor, norm_bias: Tensor, *branch: Tensor) -> tuple[Tensor, ...]:
            values, bias = branch or (None, None)
            return reference.add_norm(stream, weight, norm_bias, EPS, values, bias, self.join, self.rows)[:outputs]

        return specified

    def forward(self, draw: Draw, tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`add_norm_forward`."""
        from bert_pld.kernels.add_norm import add_norm_forward

        stream, weight, norm_bias, *branch = draw.inputs
        values, bias = branch or (None, None)
        return add_norm_forward(stream, weight, norm_bias, EPS, values, bias, self.join, self.rows, tile)

    def backward(self, draw: Draw, saved: tuple[Tensor, ...], tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`add_norm_backward`."""
        from bert_pld.kernels.add_norm import add_norm_backward

        _, new_stream, mean, rstd = saved
        grad_normed, grad_new_stream = (*draw.upstream, None)[:2]
        grad_stream, grad_values, sums = add_norm_backward(
            grad_normed, grad_new_stream, new_stream, draw.inputs[1], mean, rstd, self.join, self.rows, tile
        )
        if grad_values is None:
            return grad_stream, sums[0], sums[1]
        return grad_stream, sums[0], sums[1], grad_values, sums[2]

    def default_tile(self, direction: str) -> Tile:
        """Of rows, reducing in backward."""
        from bert_pld.kernels.tiles import reducing_row_tile, row_tile

        return row_tile(self.size.hidden) if direction == "forward" else reducing_row_tile(self.size.hidden)


class BiasGelu(Operation):
    """GELU of values and their bias, [T, I]."""

    def __init__(self, size: Size, device: torch.device, activation: Literal["gelu", "gelu_tanh"]) -> None:
        super().__init__(size, device)
        self.name, self.activation, self.width = f"bias_{activation}", activation, 4 * size.hidden

    def moved_bytes(self, direction: str) -> int:
        """Backward reads values and the upstream gradient and writes one."""
        rows, item = self.size.tokens, self.size.item_bytes
        if direction == "forward":
            return (2 * rows + 1) * self.width * item
        return (3 * rows + 1) * self.width * item + self.width * _FP32

    def draw(self, seed: int) -> Draw:
        """values [T, I] and bias [I]."""
        generator, shape = self.generator(seed), (self.size.tokens, self.width)
        inputs = (self.normal(generator, *shape), self.normal(generator, self.width))
        return Draw(inputs, (self.normal(generator, *shape).detach(),))

    def formula(self) -> Formula:
        """[T, I]."""
        approximate = "tanh" if self.activation == "gelu_tanh" else "none"
        return lambda values, bias: (F.gelu(values + bias, approximate=approximate),)

    def specification(self) -> Formula:
        """The reference's."""
        return lambda values, bias: (reference.bias_gelu(values, bias, self.activation),)

    def forward(self, draw: Draw, tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`bias_gelu_forward`."""
        from bert_pld.kernels.bias_gelu import bias_gelu_forward

        values, bias = draw.inputs
        return (bias_gelu_forward(values, bias, self.activation, tile),)

    def backward(self, draw: Draw, saved: tuple[Tensor, ...], tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`bias_gelu_backward`."""
        from bert_pld.kernels.bias_gelu import bias_gelu_backward

        values, bias = draw.inputs
        (grad_out,) = draw.upstream
        assert grad_out is not None
        return bias_gelu_backward(grad_out, values, bias, self.activation, tile)

    def default_tile(self, direction: str) -> Tile:
        """Of elements."""
        from bert_pld.kernels.tiles import element_tile

        return element_tile(self.width)


class CrossEntropy(Operation):
    """Loss of [M, V] logits, whether the label is the highest, and the gradient written over the logits."""

    name = "cross_entropy"
    directions = ("both",)
    overwrites = True

    def __init__(self, size: Size, device: torch.device) -> None:
        super().__init__(size, device)
        self.rows = max(round(MASK_PROBABILITY * size.tokens), 1)

    def moved_bytes(self, direction: str) -> int:
        """Logits read once, their gradient written once."""
        return 2 * self.rows * self.size.vocabulary * self.size.item_bytes + self.rows * (_INT64 + _FP32 + _INT32)

    def draw(self, seed: int) -> Draw:
        """logits [M, V] and labels [M]."""
        generator = self.generator(seed)
        logits = self.normal(generator, self.rows, self.size.vocabulary)
        labels = torch.randint(0, self.size.vocabulary, (self.rows,), generator=generator, device=self.device)
        return Draw((logits, labels), (torch.ones(self.rows, device=self.device), None))

    def formula(self) -> Formula:
        """Losses [M] and whether the label is the highest, [M]."""
        return _cross_entropy

    def specification(self) -> Formula:
        """Losses [M] in the logits' precision."""
        return lambda logits, labels: (F.cross_entropy(logits, labels, reduction="none"),)

    def forward(self, draw: Draw, tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`cross_entropy`: losses, correct ones, and the logits, now their gradient."""
        from bert_pld.kernels.linear_cross_entropy import cross_entropy

        logits, labels = draw.inputs
        return *cross_entropy(logits, labels, True, tile), logits

    def backward(self, draw: Draw, saved: tuple[Tensor, ...], tile: Tile | None = None) -> tuple[Tensor, ...]:
        """What forward wrote over the logits."""
        return (saved[2],)

    def default_tile(self, direction: str) -> Tile:
        """A row a program, `width` logits at a time."""
        from bert_pld.kernels.linear_cross_entropy import block_and_warps
        from bert_pld.kernels.tiles import Tile

        block, num_warps = block_and_warps(self.size.vocabulary)
        return Tile(rows=1, width=block, num_warps=num_warps)


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return losses, logits.detach().argmax(-1) == labels


OPERATIONS: dict[str, Callable[[Size, torch.device], Operation]] = {
    "layer_norm": lambda size, device: AddNorm("layer_norm", size, device, branch=False, subsets=False),
    "layer_norm_gather": lambda size, device: AddNorm("layer_norm_gather", size, device, branch=False, subsets=True),
    "add_norm": lambda size, device: AddNorm("add_norm", size, device, branch=True, subsets=False),
    "add_norm_scatter_gather": lambda size, device: AddNorm(
        "add_norm_scatter_gather", size, device, branch=True, subsets=True
    ),
    "bias_gelu": lambda size, device: BiasGelu(size, device, "gelu"),
    "bias_gelu_tanh": lambda size, device: BiasGelu(size, device, "gelu_tanh"),
    "cross_entropy": CrossEntropy,
}


def _two_subsets(size: Size, device: torch.device) -> tuple[RowMap, RowMap]:
    """Row maps of two random subsets of the sequences: that one block kept, and that the next keeps."""
    sequences = size.tokens // size.seq_length
    count = max(round(KEPT_SHARE * sequences), 1)
    random = np.random.default_rng(0)
    kept = [np.sort(random.choice(sequences, count, replace=False)).astype(np.int64) for _ in range(2)]
    layout = TokenLayout(np.full(sequences, size.seq_length, np.int64), size.seq_length, device)
    (_, joined), (_, normed) = kept_layouts(layout, kept)
    assert joined is not None
    assert normed is not None
    return joined, normed


def _stream_rows(rows: RowMap | None) -> Tensor | None:
    """int64 [K]: the stream's row of each compact one, ascending as the compact ones are."""
    return None if rows is None else (rows.compact_row >= 0).nonzero().squeeze(1)
